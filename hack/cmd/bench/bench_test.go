package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTurns(t *testing.T) {
	sides, order := []string{"a", "b", "c"}, ""
	require.NoError(t, turns(3, sides, func(side string) error {
		order += side
		return nil
	}))
	require.Equal(t, "abccbaabc", order)
	require.Equal(t, []string{"a", "b", "c"}, sides)

	broken := errors.New("broken")
	require.Equal(t, broken, turns(3, sides, func(string) error { return broken }))
}

// What is written is the format of Go benchmarks: configuration lines, and lines of
// a name, a number of iterations, and pairs of a value and a unit.
func TestRaw(t *testing.T) {
	b := &bench{}
	b.startSection("Cold builds")
	b.add("tar of a/b", "stock", wall(3*time.Second/2), bytesIn("fetched", 456))
	b.add("tar of a/b", ourName+", lazy", wall(time.Second), reading{0.25, "ratio"})
	raw := about("A title", "hack/bench lazy") + b.raw.String()
	for line := range strings.Lines(raw) {
		line = strings.TrimSuffix(line, "\n")
		require.Regexp(t, `^$|^[a-z][^\sA-Z:]*: .*$|^Benchmark[^\sa-z]\S* [1-9]\d*( -?\d+(\.\d+)? \S+)+$`, line)
	}
	require.Contains(t, raw, "command: hack/bench lazy\n")
	require.Contains(t, raw, `
section: Cold builds
BenchmarkTar_of_a_b/side=stock 1 1500000000 ns/op 456 B-fetched
BenchmarkTar_of_a_b/side=buildkitd-esgz,_lazy 1 1000000000 ns/op 0.25 ratio
`)
}

// The number of processors is no part of a name.
func TestFigures(t *testing.T) {
	found := figures.FindAllStringSubmatch("pkg: x\nBenchmarkX/files=60000-2   \t  3\t 15 ns/op\t 2.5 MB\nBenchmarkY 1 15 ns/op\nBenchmarkFailed\nPASS\n", -1)
	require.Len(t, found, 2)
	require.Equal(t, "BenchmarkX/files=60000", found[0][1])
	require.Equal(t, "   \t  3\t 15 ns/op\t 2.5 MB", found[0][2])
	require.Equal(t, "BenchmarkY", found[1][1])
}
