package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
)

// mounting measures what it takes to mount layers of many files, once the bytes
// of the TOC are here, and their memory when all files were looked at. It runs
// the Go benchmark beside the code, each time in a process of its own.
func mounting(ctx context.Context, c *config, _ *registry) (s section, err error) {
	all := &results{}
	for range c.runs {
		out, err := exec.CommandContext(ctx, c.tools.Path("lazyfs.test"), "-test.run=^$", "-test.bench=^BenchmarkMount$", "-test.benchtime=3x").CombinedOutput()
		if err != nil {
			return s, fmt.Errorf("BenchmarkMount: %w\n%s", err, out)
		}
		found, err := readResults(bytes.NewReader(out))
		if err != nil {
			return s, err
		}
		if found.samples == nil {
			return s, fmt.Errorf("BenchmarkMount has no figures\n%s", out)
		}
		for _, f := range found.samples {
			all.add(f.name, ourName, f.readings...)
		}
	}
	return all.section("A layer is mounted, once the bytes of its TOC are here"), nil
}
