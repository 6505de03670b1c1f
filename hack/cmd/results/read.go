package main

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// results are the raw figures of a benchmark, in the order in which they were
// measured.
type results struct {
	name    string            // of the benchmark
	about   map[string]string // what was measured, where and when
	samples []sample
}

// A sample is what one side took once.
type sample struct {
	section  string
	work     string // the same for all sides
	side     string
	readings []reading
}

// A reading is a value in a unit, as ns/op.
type reading struct {
	value float64
	unit  string
}

// ourName begins the names of our sides, and is that of what has no side.
const ourName = "buildkitd-esgz"

func isOurs(side string) bool { return strings.HasPrefix(side, ourName) }

// configuration is a line that says something of those that follow.
var configuration = regexp.MustCompile(`^([a-z][^\sA-Z:]*): (.*)$`)

// read reads the format of Go benchmarks. What are no results it passes over, as
// benchstat does.
func read(from io.Reader) (*results, error) {
	r := &results{about: map[string]string{}}
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		line := lines.Text()
		if m := configuration.FindStringSubmatch(line); m != nil {
			r.about[m[1]] = m[2]
		}
		rest, ok := strings.CutPrefix(line, "Benchmark")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 4 || len(fields)%2 != 0 {
			continue
		}
		work, side, _ := strings.Cut(strings.ReplaceAll(fields[0], "_", " "), "/side=")
		s := sample{section: r.about["section"], work: work, side: cmp.Or(side, ourName)}
		for i := 2; i < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
			s.readings = append(s.readings, reading{value, fields[i+1]})
		}
		r.samples = append(r.samples, s)
	}
	return r, lines.Err()
}
