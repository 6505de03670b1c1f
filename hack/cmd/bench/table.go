package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// table compares medians to those of one of the contenders.
func table(contenders []*contender, reference *contender) string {
	var b strings.Builder
	b.WriteString("| export | wall | CPU | peak memory | layers | speed | size |\n")
	b.WriteString("|---|---:|---:|---:|---:|---:|---:|\n")
	for _, c := range contenders {
		fmt.Fprintf(&b, "| %s | %.1f s | %.1f s | %.0f MiB | %.1f MB | %.2f | %.3f |\n", c.name,
			c.wall().Seconds(), c.cpu().Seconds(), float64(c.memory())/(1<<20), float64(c.layers())/1e6,
			reference.wall().Seconds()/c.wall().Seconds(), float64(c.layers())/float64(reference.layers()))
	}
	fmt.Fprintf(&b, "\nSpeed and size are relative to %s.\n", reference.name)
	return b.String()
}

func (c *contender) wall() time.Duration {
	return median(c.results, func(r result) time.Duration { return r.wall })
}

func (c *contender) cpu() time.Duration {
	return median(c.results, func(r result) time.Duration { return r.cpu })
}

func (c *contender) memory() int64 {
	return median(c.results, func(r result) int64 { return r.memory })
}

func (c *contender) layers() int64 {
	return median(c.results, func(r result) int64 { return r.layers })
}

func median[R any, T cmp.Ordered](results []R, of func(R) T) T {
	var values []T
	for _, r := range results {
		values = append(values, of(r))
	}
	slices.Sort(values)
	return values[len(values)/2]
}
