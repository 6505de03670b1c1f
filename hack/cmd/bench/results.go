package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// results are the raw figures of a benchmark, in the order in which they were
// measured. They are written in the format of Go benchmarks, which benchstat
// reads: benchstat -col /side FILE.
type results struct {
	samples []sample
	prefix  string // of the names of all works in a file
}

// A sample is what one side took once.
type sample struct {
	name     string // of the work, the same for all sides
	side     string
	readings []reading
}

// A reading is a value in a unit, as ns/op.
type reading struct {
	value float64
	unit  string
}

func (r *results) add(name, side string, readings ...reading) {
	r.samples = append(r.samples, sample{name, side, readings})
}

// write writes a line for each sample.
func (r *results) write(w *strings.Builder) {
	for _, s := range r.samples {
		// Behind Benchmark stands no small letter.
		name := word(r.prefix + s.name)
		fmt.Fprintf(w, "Benchmark%s%s/side=%s 1", strings.ToUpper(name[:1]), name[1:], word(s.side))
		for _, f := range s.readings {
			fmt.Fprintf(w, " %s %s", strconv.FormatFloat(f.value, 'f', -1, 64), f.unit)
		}
		fmt.Fprintln(w)
	}
}

// word is a text as a part of a benchmark's name, which has no spaces.
func word(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || r == '/' || r == ',' || r == '`' {
			return '_'
		}
		return r
	}, text)
}

// readResults reads what write or a Go benchmark has written. What are no results
// it passes over, as benchstat does.
func readResults(from io.Reader) (*results, error) {
	r := &results{}
	for lines := bufio.NewScanner(from); lines.Scan(); {
		line := lines.Text()
		rest, ok := strings.CutPrefix(line, "Benchmark")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 4 || len(fields)%2 != 0 {
			continue
		}
		name, side, _ := strings.Cut(fields[0], "/side=")
		s := sample{name: name, side: side}
		for i := 2; i < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
			s.readings = append(s.readings, reading{value, fields[i+1]})
		}
		r.samples = append(r.samples, s)
	}
	return r, nil
}

// table has a row for each side of each work, with the median of each unit, how
// far the quartiles are from it, and how the median compares with that of the first
// side of the work that is not ours.
func (r *results) table() table {
	type key struct{ name, side, unit string }
	values := map[key][]float64{}
	first := map[string]string{} // side, by name, not ours if there are others
	var rows []key               // without a unit
	var units []string
	for _, s := range r.samples {
		if row := (key{s.name, s.side, ""}); !slices.Contains(rows, row) {
			rows = append(rows, row)
		}
		if isOurs := strings.HasPrefix(first[s.name], ourName); first[s.name] == "" || isOurs && !strings.HasPrefix(s.side, ourName) {
			first[s.name] = s.side
		}
		for _, f := range s.readings {
			if !slices.Contains(units, f.unit) {
				units = append(units, f.unit)
			}
			k := key{s.name, s.side, f.unit}
			values[k] = append(values[k], f.value)
		}
	}
	t := table{Columns: []string{"side", "work"}}
	for _, unit := range units {
		t.Columns = append(t.Columns, shown(unit).name, "ratio")
	}
	for _, row := range rows {
		cells := []string{row.side, row.name}
		for _, unit := range units {
			all := values[key{row.name, row.side, unit}]
			if all == nil {
				cells = append(cells, "-", "-")
				continue
			}
			cells = append(cells, spread(all, shown(unit).scale), fmt.Sprintf("%.2f", middle(all)/middle(values[key{row.name, first[row.name], unit}])))
		}
		t.add(cells...)
	}
	return t
}

// section shows the figures, and the first unit of them as bars.
func (r *results) section(title string, notes ...string) section {
	s := section{Title: title, Table: r.table(), raw: r, Bars: &bars{}, Notes: append(notes,
		"Medians, with the larger distance of a quartile. A ratio is to the first other side of the same work.")}
	unit := shown(r.samples[0].readings[0].unit)
	s.Bars.Unit = unit.name
	for i, a := range r.samples {
		if !slices.ContainsFunc(r.samples[:i], func(b sample) bool { return a.name == b.name && a.side == b.side }) {
			s.Bars.add(a.side+", "+a.name, r.median(a.name, a.side, r.samples[0].readings[0].unit)*unit.scale)
		}
	}
	return s
}

func (r *results) median(name, side, unit string) float64 {
	var values []float64
	for _, s := range r.samples {
		for _, f := range s.readings {
			if s.name == name && s.side == side && f.unit == unit {
				values = append(values, f.value)
			}
		}
	}
	if values == nil {
		return 0
	}
	return middle(values)
}

func middle(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func wall(d time.Duration) reading { return reading{float64(d), "ns/op"} }

func bytesIn(what string, n int64) reading { return reading{float64(n), "B-" + what} }

// spread is a median and the larger distance of a quartile from it.
func spread(values []float64, scale float64) string {
	sorted := slices.Sorted(slices.Values(values))
	median := middle(values)
	if len(sorted) == 1 || median == 0 {
		return decimals(median * scale)
	}
	low, high := sorted[len(sorted)/4], sorted[(len(sorted)*3)/4]
	return fmt.Sprintf("%s ± %.0f %%", decimals(median*scale), 100*max(median-low, high-median)/median)
}

func decimals(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// shown is how a unit is shown to people, and what its values are multiplied with.
func shown(unit string) (u struct {
	name  string
	scale float64
}) {
	u.name, u.scale = unit, 1
	switch what, base, _ := strings.Cut(unit, "-"); {
	case unit == "ns/op":
		u.name, u.scale = "seconds", 1e-9
	case base == "ns/op":
		u.name, u.scale = what+" seconds", 1e-9
	case strings.HasPrefix(unit, "B-"):
		u.name, u.scale = "MB "+base, 1e-6
	}
	return u
}

func median[R any, T cmp.Ordered](of []R, value func(R) T) T {
	var values []T
	for _, r := range of {
		values = append(values, value(r))
	}
	slices.Sort(values)
	return values[len(values)/2]
}
