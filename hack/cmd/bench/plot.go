package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// bars compare figures of one kind.
type bars struct {
	Unit string
	Bars []bar
}

type bar struct {
	Label string
	Value float64
	Ours  bool
}

func (b *bars) add(label string, value float64) {
	b.Bars = append(b.Bars, bar{label, value, strings.HasPrefix(label, ourName)})
}

// A curve shows pairs of figures of several series.
type curve struct {
	X, Y   string // what they are, with their units
	Series []series
}

type series struct {
	Name   string
	Ours   bool
	Points []point
}

type point struct {
	Label string
	X, Y  float64
}

const (
	plotWidth = 720
	barHeight = 22
	barGap    = 8
	barsLeft  = 220 // for labels
	barsRight = 90  // for figures
)

// style is for plots that stand alone, too. The colours are read on white and on
// black.
const style = `<style>text{font:13px system-ui,sans-serif;fill:#57606a}.o{fill:#1f883d}.t{fill:#9aa4ae}.ol{stroke:#1f883d}.tl{stroke:#9aa4ae}.g{stroke:#8c959f;stroke-opacity:.3}polyline{fill:none;stroke-width:2}</style>`

func svg(height int, content string) string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" role="img">%s%s</svg>`, plotWidth, height, plotWidth, style, content)
}

func text(x, y float64, anchor, s string) string {
	return fmt.Sprintf(`<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, x, y, anchor, html.EscapeString(s))
}

// class is the colour of ours or of others'.
func class(ours bool) string {
	if ours {
		return "o"
	}
	return "t"
}

func (b *bars) svg() string {
	var s strings.Builder
	most := 0.0
	for _, bar := range b.Bars {
		most = max(most, bar.Value)
	}
	for i, bar := range b.Bars {
		y := float64(i * (barHeight + barGap))
		width := (plotWidth - barsLeft - barsRight) * bar.Value / most
		s.WriteString(text(barsLeft-8, y+barHeight*0.7, "end", bar.Label))
		fmt.Fprintf(&s, `<rect class="%s" x="%d" y="%.1f" width="%.1f" height="%d" rx="3"/>`, class(bar.Ours), barsLeft, y, width, barHeight)
		s.WriteString(text(barsLeft+width+6, y+barHeight*0.7, "start", fmt.Sprintf("%s %s", figure(bar.Value), b.Unit)))
	}
	return svg(len(b.Bars)*(barHeight+barGap), s.String())
}

// figure shows three digits.
func figure(v float64) string {
	digits := 2 - int(math.Floor(math.Log10(max(v, 0.01))))
	return fmt.Sprintf("%.*f", max(digits, 0), v)
}

const (
	curveHeight = 420
	curveLeft   = 60
	curveRight  = 150 // for names of series
	curveTop    = 20
	curveBottom = 50
)

func (c *curve) svg() string {
	var xs, ys []float64
	for _, s := range c.Series {
		for _, p := range s.Points {
			xs, ys = append(xs, p.X), append(ys, p.Y)
		}
	}
	across := newAxis(xs, curveLeft, plotWidth-curveRight)
	up := newAxis(ys, curveHeight-curveBottom, curveTop)
	var s strings.Builder
	for _, v := range across.ticks() {
		x := across.at(v)
		fmt.Fprintf(&s, `<line class="g" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/>`, x, curveTop, x, curveHeight-curveBottom)
		s.WriteString(text(x, curveHeight-curveBottom+18, "middle", fmt.Sprintf("%g", v)))
	}
	for _, v := range up.ticks() {
		y := up.at(v)
		fmt.Fprintf(&s, `<line class="g" x1="%d" y1="%.1f" x2="%d" y2="%.1f"/>`, curveLeft, y, plotWidth-curveRight, y)
		s.WriteString(text(curveLeft-8, y+4, "end", fmt.Sprintf("%g", v)))
	}
	s.WriteString(text((curveLeft+plotWidth-curveRight)/2, curveHeight-8, "middle", c.X))
	s.WriteString(text(curveLeft, 12, "start", c.Y))
	for _, line := range c.Series {
		s.WriteString(line.svg(across, up))
	}
	return svg(curveHeight, s.String())
}

func (l *series) svg(across, up axis) string {
	var s strings.Builder
	fmt.Fprintf(&s, `<polyline class="%sl" points="`, class(l.Ours))
	for _, p := range l.Points {
		fmt.Fprintf(&s, "%.1f,%.1f ", across.at(p.X), up.at(p.Y))
	}
	s.WriteString(`"/>`)
	for i, p := range l.Points {
		x, y := across.at(p.X), up.at(p.Y)
		fmt.Fprintf(&s, `<circle class="%s" cx="%.1f" cy="%.1f" r="4"/>`, class(l.Ours), x, y)
		s.WriteString(text(x, y-8, "middle", p.Label))
		if i == len(l.Points)-1 {
			s.WriteString(text(x+10, y+14, "start", l.Name))
		}
	}
	return s.String()
}

// An axis places values between two ends of a plot.
type axis struct{ least, step, most, from, to float64 }

// newAxis begins and ends at round values.
func newAxis(values []float64, from, to float64) axis {
	least, most := math.Inf(1), math.Inf(-1)
	for _, v := range values {
		least, most = min(least, v), max(most, v)
	}
	step := math.Pow(10, math.Floor(math.Log10(max(most-least, 1e-9))))
	for _, finer := range []float64{2, 2.5} {
		if (most-least)/step < 4 {
			step /= finer
		}
	}
	const rounding = 1e-9 // of the quotients
	return axis{math.Floor(least/step+rounding) * step, step, math.Ceil(most/step-rounding) * step, from, to}
}

func (a axis) at(v float64) float64 {
	return a.from + (a.to-a.from)*(v-a.least)/(a.most-a.least)
}

func (a axis) ticks() (all []float64) {
	for i := 0; ; i++ {
		v := a.least + float64(i)*a.step
		if v > a.most+a.step/2 {
			return all
		}
		all = append(all, math.Round(v*1e6)/1e6)
	}
}
