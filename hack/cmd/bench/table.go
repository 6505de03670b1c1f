package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// exportSection compares medians to those of one of the contenders.
func exportSection(title string, contenders []*contender, reference *contender) section {
	s := section{
		Title: title,
		Table: table{Columns: []string{"export", "wall", "CPU", "peak memory", "layers", "speed", "size"}},
		Notes: []string{"Speed and size are relative to " + reference.name + "."},
		Bars:  &bars{Unit: "s"},
	}
	for _, c := range contenders {
		memory := "-"
		if c.memory() > 0 {
			memory = fmt.Sprintf("%.0f MiB", float64(c.memory())/(1<<20))
		}
		s.Table.add(c.name, fmt.Sprintf("%.1f s", c.wall().Seconds()), fmt.Sprintf("%.1f s", c.cpu().Seconds()), memory,
			fmt.Sprintf("%.1f MB", float64(c.layers())/1e6),
			fmt.Sprintf("%.2f", reference.wall().Seconds()/c.wall().Seconds()), fmt.Sprintf("%.3f", float64(c.layers())/float64(reference.layers())))
		s.Bars.add(c.name, c.wall().Seconds())
	}
	return s
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
