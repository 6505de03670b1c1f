package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// raw has results of two sections.
const raw = `title: A title
cpu: a processor
command: hack/bench that
commit: abc

section: Large <layers>
BenchmarkLevel_1/side=buildkitd-esgz_estargz 1 2500000000 ns/op 3000000 B-layers
BenchmarkLevel_1/side=stock 1 5000000000 ns/op 2000000 B-layers
BenchmarkLevel_1/side=stock 1 4000000000 ns/op 2000000 B-layers
BenchmarkLevel_1/side=buildkitd-esgz_estargz 1 2000000000 ns/op 3000000 B-layers
BenchmarkLevel_1/side=buildkitd-esgz_estargz 1 4500000000 ns/op 3000000 B-layers
BenchmarkLevel_1/side=stock 1 9000000000 ns/op 2000000 B-layers
BenchmarkLevel_1/side=stock 1 4000000000 ns/op 2000000 B-layers
BenchmarkLevel_1/side=buildkitd-esgz_estargz 1 2000000000 ns/op 3000000 B-layers
BenchmarkLevel_1/side=buildkitd-esgz_estargz 1 2500000000 ns/op 3000000 B-layers
BenchmarkLevel_1/side=stock 1 5000000000 ns/op 2000000 B-layers
BenchmarkLevel_2/side=buildkitd-esgz_estargz 1 1000000000 ns/op 1000000 B-layers

section: Another
BenchmarkOther/side=stock 1 0 files
BenchmarkOther/side=buildkitd-esgz 1 3 files
BenchmarkAlone 1 2 files
PASS
BenchmarkBroken 1
`

func readRaw(t *testing.T, raw string) *results {
	t.Helper()
	r, err := read(strings.NewReader(raw))
	require.NoError(t, err)
	return r
}

func TestRead(t *testing.T) {
	r := readRaw(t, raw)
	require.Equal(t, "hack/bench that", r.about["command"])
	require.Len(t, r.samples, 14)
	require.Equal(t, sample{"Large <layers>", "Level 1", "buildkitd-esgz estargz", []reading{{2.5e9, "ns/op"}, {3e6, "B-layers"}}}, r.samples[0])
	require.Equal(t, sample{"Another", "Alone", ourName, []reading{{2, "files"}}}, r.samples[13])

	_, err := read(strings.NewReader("BenchmarkX 1 1.2.3 ns/op\n"))
	require.Error(t, err)
}

func TestTable(t *testing.T) {
	sections := readRaw(t, raw).sections()
	require.Len(t, sections, 2)
	require.Equal(t, `| work | side | runs | seconds | ratio | MB layers | ratio |
|---|---|---:|---:|---:|---:|---:|
| Level 1 | buildkitd-esgz estargz | 5 | 2.5 ± 20 % | 0.5 ± 0 % | 3 ± 0 % | 1.5 ± 0 % |
| Level 1 | stock | 5 | 5 ± 20 % | - | 2 ± 0 % | - |
| Level 2 | buildkitd-esgz estargz | 1 | 1 | - | 1 | - |
`, sections[0].table())
	require.NotContains(t, sections[1].table(), "ratio", "one to nothing")
}

// The ratio is that of each run, not of the medians.
func TestRatios(t *testing.T) {
	var raw string
	for _, v := range []struct{ stock, ours int }{{1, 2}, {10, 10}, {4, 1}} {
		raw += fmt.Sprintf("BenchmarkX/side=stock 1 %d files\nBenchmarkX/side=%s 1 %d files\n", v.stock, ourName, v.ours)
	}
	all, units := rows(readRaw(t, raw).samples)
	require.Equal(t, []string{"files"}, units)
	require.Equal(t, []float64{2, 1, 0.25}, all[1].ratios(all, "files"))
	require.Empty(t, all[0].ratios(all, "files"))
}

func TestQuantile(t *testing.T) {
	require.Equal(t, 7.0, quantile([]float64{7}, 0.75))
	require.Equal(t, 2.5, quantile([]float64{4, 1, 3, 2}, 0.5))
	require.Equal(t, 2.0, quantile([]float64{5, 1, 3, 2, 4}, 0.25))
	require.Equal(t, 5.0, quantile([]float64{5, 1, 3, 2, 4}, 1))
}

// The page has what the directory has now, and none of what it had.
func TestPage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "results")
	require.NoError(t, os.Mkdir(dir, 0o755))
	for _, name := range []string{"levels.txt", "export.txt"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(raw), 0o644))
	}
	require.NoError(t, writePage(dir))
	text, err := os.ReadFile(dir + ".md")
	require.NoError(t, err)
	require.Contains(t, string(text), "\n## A title\n\nBy `hack/bench that` at commit abc")
	plots, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	require.NoError(t, err)
	require.Len(t, plots, 4)
	for _, plot := range plots {
		require.Contains(t, string(text), "](results/"+filepath.Base(plot)+")")
		svg, err := os.ReadFile(plot)
		require.NoError(t, err)
		wellFormed(t, string(svg))
	}

	for _, name := range []string{"levels.txt", "export.txt"} {
		require.NoError(t, os.Remove(filepath.Join(dir, name)))
	}
	require.NoError(t, writePage(dir))
	left, err := os.ReadDir(filepath.Dir(dir))
	require.NoError(t, err)
	require.Len(t, left, 1, "the directory")
	require.NoError(t, os.Remove(dir), "it is empty")
}

// What is committed is what hack/bench page makes of the committed raw results.
func TestCommittedPage(t *testing.T) {
	const docs = "../../../docs"
	made, err := page(os.DirFS(docs+"/results"), "results")
	require.NoError(t, err)
	committed, err := filepath.Glob(docs + "/results/*.svg")
	require.NoError(t, err)
	if _, err := os.Stat(docs + "/results.md"); err == nil {
		committed = append(committed, docs+"/results.md")
	}
	require.Len(t, committed, len(made), "run hack/bench page")
	for name, text := range made {
		found, err := os.ReadFile(filepath.Join(docs, name))
		require.NoError(t, err)
		require.Equal(t, text, string(found), "run hack/bench page: %s", name)
	}
}

func TestPlots(t *testing.T) {
	s := readRaw(t, raw).sections()[0]
	bars := s.bars()
	wellFormed(t, bars)
	// From 0 to 9 seconds, of which 350 points are.
	require.Contains(t, bars, `<rect class="o" x="340" y="0.0" width="97.2"`)
	require.Contains(t, bars, `<rect class="t" x="340" y="30.0" width="194.4"`)
	require.Contains(t, bars, ">seconds<")
	require.Contains(t, bars, ">Level 1: stock<")

	curve := s.curve()
	wellFormed(t, curve)
	// From 1 to 5 seconds across, from 1 to 3 MB upwards.
	require.Contains(t, curve, `<polyline class="ol" points="266.2,20.0 60.0,380.0 "/>`)
	require.Contains(t, curve, ">MB layers<")
}

func wellFormed(t *testing.T, svg string) {
	t.Helper()
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			require.NoError(t, err, svg)
		}
	}
}

func TestAxis(t *testing.T) {
	for _, c := range []struct {
		values []float64
		ticks  []float64
	}{
		{[]float64{1, 11}, []float64{0, 2, 4, 6, 8, 10, 12}},
		{[]float64{160, 180}, []float64{160, 165, 170, 175, 180}},
		{[]float64{0.1, 0.5}, []float64{0.1, 0.2, 0.3, 0.4, 0.5}},
		{[]float64{0.11, 0.19}, []float64{0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18, 0.19}},
		{[]float64{0.3, 0.9}, []float64{0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}}, // 0.3 / 0.1 < 3
	} {
		require.InDeltaSlice(t, c.ticks, newAxis(c.values, 0, 100).ticks(), 1e-9, fmt.Sprint(c.values))
	}
	for _, same := range []float64{0, 5, 3e9} { // whatever the ticks are, there is a place for it
		at := newAxis([]float64{same, same}, 0, 100).at(same)
		require.GreaterOrEqual(t, at, 0.0)
		require.LessOrEqual(t, at, 100.0)
	}
}
