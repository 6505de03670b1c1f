package main

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
)

// mounting measures what it takes to mount layers of many files, once the bytes
// of the TOC are here, and their memory when all files were looked at. It runs
// the Go benchmark beside the code, each time in a process of its own.
func mounting(ctx context.Context, c *config, _ *registry) (s section, err error) {
	runs := map[int][]mountRun{}
	for range c.runs {
		out, err := exec.CommandContext(ctx, c.tools.Path("lazyfs.test"), "-test.run=^$", "-test.bench=^BenchmarkMount$", "-test.benchtime=3x").CombinedOutput()
		if err != nil {
			return s, fmt.Errorf("BenchmarkMount: %w\n%s", err, out)
		}
		found := mountFigures.FindAllSubmatch(out, -1)
		if found == nil {
			return s, fmt.Errorf("BenchmarkMount has no figures\n%s", out)
		}
		for _, m := range found {
			files, _ := strconv.Atoi(string(m[1]))
			nanoseconds, _ := strconv.ParseFloat(string(m[2]), 64)
			mb, _ := strconv.ParseFloat(string(m[3]), 64)
			runs[files] = append(runs[files], mountRun{nanoseconds / 1e6, mb})
		}
	}
	s.Title = "A layer is mounted, once the bytes of its TOC are here"
	s.Table.Columns = []string{"files", "milliseconds", "MB of memory", "MB for 100,000 files"}
	for _, files := range slices.Sorted(maps.Keys(runs)) {
		took := median(runs[files], func(r mountRun) float64 { return r.milliseconds })
		memory := median(runs[files], func(r mountRun) float64 { return r.mb })
		s.Table.add(fmt.Sprint(files), fmt.Sprintf("%.0f", took), fmt.Sprintf("%.1f", memory), fmt.Sprintf("%.1f", memory*100_000/float64(files)))
	}
	return s, nil
}

// A mountRun is a line that the benchmark prints.
type mountRun struct{ milliseconds, mb float64 }

var mountFigures = regexp.MustCompile(`BenchmarkMount/files=(\d+)\S*\s+\d+\s+([\d.]+) ns/op\s+([\d.]+) MB`)
