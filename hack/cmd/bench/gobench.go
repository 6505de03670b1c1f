package main

import (
	"context"
	"fmt"
	"log"
	"os/exec"
	"regexp"
)

// hostile measures what layers cost that are made to cost much.
func (b *bench) hostile(ctx context.Context) error {
	b.startSection("Hostile layers, and an honest one of their size, which has empty files with ordinary names")
	return b.goBenchmark(ctx, "store.test", "BenchmarkHostile", "1x")
}

// mounting measures what it takes to mount layers of many files, once the bytes
// of the TOC are here, and their memory when all files were looked at.
func (b *bench) mounting(ctx context.Context) error {
	b.startSection("A layer is mounted, once the bytes of its TOC are here")
	return b.goBenchmark(ctx, "lazyfs.test", "BenchmarkMount", "3x")
}

// goBenchmark runs a benchmark that stands beside the code, each time in a process
// of its own.
func (b *bench) goBenchmark(ctx context.Context, binary, name, times string) error {
	for range b.runs {
		out, err := exec.CommandContext(ctx, b.tools.Path(binary), "-test.run=^$", "-test.bench=^"+name+"$", "-test.benchtime="+times).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, out)
		}
		found := figures.FindAllSubmatch(out, -1)
		if found == nil {
			return fmt.Errorf("%s has no figures\n%s", name, out)
		}
		for _, m := range found {
			log.Printf("%s%s", m[1], m[2])
			fmt.Fprintf(&b.raw, "%s%s\n", m[1], m[2])
		}
	}
	return nil
}

// figures are a line of results. The name ends in the number of processors, unless
// that is one.
var figures = regexp.MustCompile(`(?m)^(Benchmark\S+?)(?:-\d+)?(\s+\d+\s+\d.*)$`)
