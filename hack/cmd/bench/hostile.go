package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// hostile measures what layers cost that are made to cost much. It runs the Go
// benchmark beside the code, each time in a process of its own.
func hostile(ctx context.Context, c *config) ([]section, error) {
	var order []hostileCase
	runs := map[hostileCase][]hostileRun{}
	for range c.runs {
		out, err := exec.CommandContext(ctx, c.tools.Path("store.test"), "-test.run=^$", "-test.bench=^BenchmarkHostile$", "-test.benchtime=1x").CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("BenchmarkHostile: %w\n%s", err, out)
		}
		found := hostileFigures.FindAllSubmatch(out, -1)
		if found == nil {
			return nil, fmt.Errorf("BenchmarkHostile has no figures\n%s", out)
		}
		for _, m := range found {
			of := hostileCase{string(m[1]), string(m[2]), string(m[3])}
			nanoseconds, _ := strconv.ParseFloat(string(m[4]), 64)
			mib, _ := strconv.ParseFloat(string(m[5]), 64)
			if runs[of] == nil {
				order = append(order, of)
			}
			runs[of] = append(runs[of], hostileRun{nanoseconds / 1e6, mib, string(m[6]) == "1"})
		}
	}
	s := section{
		Title: "Hostile layers, and an honest one of their size",
		Table: table{Columns: []string{"layer", "size", "step", "milliseconds", "of the honest", "MiB", "above the honest", "refused"}},
		Notes: []string{"The honest layer has empty files with ordinary names. Open looks up all names, order opens the layer too."},
	}
	milliseconds := func(of hostileCase) float64 {
		return median(runs[of], func(r hostileRun) float64 { return r.milliseconds })
	}
	mib := func(of hostileCase) float64 { return median(runs[of], func(r hostileRun) float64 { return r.mib }) }
	for _, of := range order {
		honest := of
		honest.layer = "honest"
		refused := ""
		if runs[of][0].refused {
			refused = "yes"
		}
		s.Table.add(of.layer, of.size, of.step, fmt.Sprintf("%.0f", milliseconds(of)), fmt.Sprintf("%.1f", milliseconds(of)/milliseconds(honest)),
			fmt.Sprintf("%.0f", mib(of)), fmt.Sprintf("%+.0f", mib(of)-mib(honest)), refused)
	}
	return []section{s}, nil
}

type hostileCase struct{ layer, size, step string }

// A hostileRun is a line that the benchmark prints.
type hostileRun struct {
	milliseconds, mib float64
	refused           bool
}

var hostileFigures = regexp.MustCompile(`BenchmarkHostile/(\w+)/(\w+)/(\w+?)(?:-\d+)?\s+\d+\s+([\d.]+) ns/op\s+([\d.]+) MiB\s+(\d)`)
