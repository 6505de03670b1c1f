package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What is written is the format of Go benchmarks: configuration lines, and lines of
// a name, a number of iterations, and pairs of a value and a unit.
func TestRaw(t *testing.T) {
	all := &results{prefix: "20 ms: "}
	all.add("`cat /x`, once", "stock", wall(3*time.Second/2), bytesIn("fetched", 456))
	all.add("`cat /x`, once", ourName+", lazy", wall(time.Second), bytesIn("fetched", 12))
	r := &report{Command: "hack/bench lazy", Revision: "abc", Sections: []section{all.section("first"), {Title: "without raw results"}}}
	raw := r.raw()
	for line := range strings.Lines(raw) {
		line = strings.TrimSuffix(line, "\n")
		require.Regexp(t, `^$|^[a-z][^\sA-Z:]*: .*$|^Benchmark[^\sa-z]\S* [1-9]\d*( -?\d+(\.\d+)? \S+)+$`, line)
	}
	require.Contains(t, raw, "commit: abc\n")
	require.Contains(t, raw, "Benchmark20_ms:__cat__x___once/side=stock 1 1500000000 ns/op 456 B-fetched\n")

	read, err := readResults(strings.NewReader(raw + "PASS\nBenchmarkBroken 1\n"))
	require.NoError(t, err)
	require.Len(t, read.samples, 2)
	require.Equal(t, sample{"20_ms:__cat__x___once", "buildkitd-esgz__lazy", []reading{{1e9, "ns/op"}, {12, "B-fetched"}}}, read.samples[1])

	_, err = readResults(strings.NewReader("BenchmarkX 1 1.2.3 ns/op\n"))
	require.Error(t, err)
}

func TestSection(t *testing.T) {
	all := &results{}
	for _, seconds := range []time.Duration{5, 4, 9, 4, 5} {
		all.add("work", ourName, wall(seconds*time.Second/2), bytesIn("layers", 3e6))
		all.add("work", "stock", wall(seconds*time.Second), bytesIn("layers", 2e6))
	}
	all.add("other work", ourName, wall(time.Second))
	s := all.section("a title")
	require.Equal(t, table{Columns: []string{"side", "work", "seconds", "ratio", "MB layers", "ratio"}, Rows: [][]string{
		{ourName, "work", "2.5 ± 20 %", "0.50", "3 ± 0 %", "1.50"},
		{"stock", "work", "5 ± 20 %", "1.00", "2 ± 0 %", "1.00"},
		{ourName, "other work", "1", "1.00", "-", "-"},
	}}, s.Table)
	require.Equal(t, &bars{Unit: "seconds", Bars: []bar{{ourName + ", work", 2.5, true}, {"stock, work", 5, false}, {ourName + ", other work", 1, true}}}, s.Bars)
	require.Contains(t, s.plot(), ">2.50 seconds<")
}
