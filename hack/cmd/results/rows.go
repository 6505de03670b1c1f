package main

import (
	"fmt"
	"slices"
	"strings"
)

// A row is what one side took for one work, each time.
type row struct {
	work, side string
	runs       int
	values     map[string][]float64 // by unit
}

// rows are in the order in which the samples begin, as are their units.
func rows(samples []sample) (all []*row, units []string) {
	for _, s := range samples {
		i := slices.IndexFunc(all, func(r *row) bool { return r.work == s.work && r.side == s.side })
		if i < 0 {
			i = len(all)
			all = append(all, &row{work: s.work, side: s.side, values: map[string][]float64{}})
		}
		all[i].runs++
		for _, f := range s.readings {
			if !slices.Contains(units, f.unit) {
				units = append(units, f.unit)
			}
			all[i].values[f.unit] = append(all[i].values[f.unit], f.value)
		}
	}
	return all, units
}

// ratios are those of a row to the first of the same work that is not ours, run by
// run. There are none for that row itself.
func (r *row) ratios(all []*row, unit string) (ratios []float64) {
	i := slices.IndexFunc(all, func(o *row) bool { return o.work == r.work && !isOurs(o.side) })
	if i < 0 || all[i] == r {
		return nil
	}
	for run, base := range all[i].values[unit] {
		if run < len(r.values[unit]) && base != 0 {
			ratios = append(ratios, r.values[unit][run]/base)
		}
	}
	return ratios
}

// quantile of values in any order, with those between two of them in proportion.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	i := int(at)
	next := sorted[min(i+1, len(sorted)-1)]
	return sorted[i] + (at-float64(i))*(next-sorted[i])
}

// spread is a median and the larger distance of a quartile from it.
func spread(values []float64, scale float64) string {
	if len(values) == 0 {
		return "-"
	}
	median := quantile(values, 0.5)
	shown := decimals(median * scale)
	if len(values) == 1 || median == 0 {
		return shown
	}
	far := max(median-quantile(values, 0.25), quantile(values, 0.75)-median)
	return fmt.Sprintf("%s ± %.0f %%", shown, 100*far/median)
}

// decimals shows four digits, or all in front of the point.
func decimals(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.4g", v)
}

// display is how a unit is shown to people, and what its values are multiplied with.
func display(unit string) (name string, scale float64) {
	switch what, base, _ := strings.Cut(unit, "-"); {
	case unit == "ns/op":
		return "seconds", 1e-9
	case base == "ns/op":
		return what + " seconds", 1e-9
	case what == "B":
		return "MB " + base, 1e-6
	}
	return strings.ReplaceAll(unit, "-", " "), 1
}
