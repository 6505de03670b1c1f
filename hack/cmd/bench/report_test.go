package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A benchmark that is run again replaces its part of the page, and leaves those
// of others.
func TestPage(t *testing.T) {
	dir := t.TempDir()
	made := func(name, title string) *report {
		r := &report{Name: name, Title: title, Command: "hack/bench " + name, Sections: []section{{Title: "a `step` & more", Bars: &bars{Unit: "s"}}}}
		s := &r.Sections[0]
		s.Table.Columns = []string{"who", "time"}
		s.Table.add("stock", "12 s")
		s.Table.add(ourName+" <lazy>", "3 s")
		s.Bars.add("stock", 12)
		s.Bars.add(ourName+" <lazy>", 3)
		return r
	}
	for _, r := range []*report{made("lazy", "Second"), made("export", "Old"), made("export", "First")} {
		page, err := r.keep(dir)
		require.NoError(t, err)
		require.FileExists(t, page)
		require.FileExists(t, filepath.Join(dir, r.Name+"-1.svg"))
	}
	raw, err := os.ReadFile(dir + "/index.html")
	require.NoError(t, err)
	page := string(raw)
	require.NotContains(t, page, "Old")
	require.Less(t, strings.Index(page, `<h2 id="export">First`), strings.Index(page, `<h2 id="lazy">Second`))
	require.Contains(t, page, "a <code>step</code> &amp; more")
	require.Contains(t, page, `<tr class="ours"><td>buildkitd-esgz &lt;lazy&gt;</td>`)
	require.Contains(t, page, "hack/bench export")

	require.Contains(t, made("lazy", "Second").markdown(), "| who | time |\n|---|---:|\n| stock | 12 s |\n")
}

func TestPlots(t *testing.T) {
	b := bars{Unit: "s", Bars: []bar{{"a & b", 10, false}, {"ours", 5, true}}}
	wellFormed(t, b.svg())
	require.Contains(t, b.svg(), `<rect class="t" x="220" y="0.0" width="410.0"`)
	require.Contains(t, b.svg(), `<rect class="o" x="220" y="30.0" width="205.0"`)
	require.Contains(t, b.svg(), ">5.00 s<")

	c := curve{X: "s", Y: "MB", Series: []series{{"ours", true, []point{{"1", 1, 180}, {"9", 11, 160}}}}}
	wellFormed(t, c.svg())
	// From 0 to 12 s across, from 160 to 180 MB upwards.
	require.Contains(t, c.svg(), `points="102.5,20.0 527.5,370.0 "`)
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
		{[]float64{5, 5}, nil}, // whatever it is, it ends
	} {
		ticks := newAxis(c.values, 0, 100).ticks()
		if c.ticks != nil {
			require.InDeltaSlice(t, c.ticks, ticks, 1e-9)
		}
		require.NotEmpty(t, ticks)
	}
}
