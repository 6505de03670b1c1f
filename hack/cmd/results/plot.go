package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

const (
	plotWidth  = 760
	axisHeight = 40

	barHeight = 22
	barGap    = 8
	barsLeft  = 340 // for labels
	barsRight = 70  // for figures

	curveHeight = 420
	curveLeft   = 60
	curveRight  = 150 // for names of series
	curveTop    = 20
)

// style is read on white and on black: o is ours, t is theirs, g is the grid.
const style = `<style>text{font:13px system-ui,sans-serif;fill:#768390}.o{fill:#2da44e}.t{fill:#8c96a0}.ol{stroke:#2da44e}.tl{stroke:#8c96a0}.g{stroke:#8c96a0;stroke-opacity:.35}.d{fill:#bf8700}polyline{fill:none;stroke-width:2}</style>`

func svg(height int, content string) string {
	return fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" role=\"img\">%s\n%s</svg>\n", plotWidth, height, plotWidth, style, content)
}

func text(x, y float64, anchor, s string) string {
	return fmt.Sprintf("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, html.EscapeString(s))
}

func line(x1, y1, x2, y2 float64) string {
	return fmt.Sprintf("<line class=\"g\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", x1, y1, x2, y2)
}

func dot(class string, x, y, radius float64) string {
	return fmt.Sprintf("<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"%g\"/>\n", class, x, y, radius)
}

// class is the colour of a side.
func class(side string) string {
	if isOurs(side) {
		return "o"
	}
	return "t"
}

// bars shows the first unit of the section: a bar is a median, a dot one run.
func (s *section) bars() string {
	unit := s.units[0]
	name, scale := display(unit)
	compared := slices.DeleteFunc(slices.Clone(s.rows), func(r *row) bool { return r.values[unit] == nil })
	ends := []float64{0}
	for _, r := range compared {
		for _, v := range r.values[unit] {
			ends = append(ends, v*scale)
		}
	}
	across := newAxis(ends, barsLeft, plotWidth-barsRight)
	bottom := len(compared) * (barHeight + barGap)
	content := across.horizontal(0, float64(bottom), name)
	for i, r := range compared {
		y := float64(i * (barHeight + barGap))
		median := quantile(r.values[unit], 0.5) * scale
		label := r.side
		if slices.ContainsFunc(compared, func(o *row) bool { return o.work != r.work }) {
			label = r.work + ": " + r.side
		}
		content += text(barsLeft-8, y+barHeight*0.7, "end", strings.ReplaceAll(label, "`", ""))
		content += fmt.Sprintf("<rect class=\"%s\" x=\"%d\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" rx=\"3\"/>\n", class(r.side), barsLeft, y, across.at(median)-barsLeft, barHeight)
		right := 0.0
		for _, v := range r.values[unit] {
			right = max(right, across.at(v*scale))
			content += dot("d", across.at(v*scale), y+barHeight/2, 2.5)
		}
		content += text(right+8, y+barHeight*0.7, "start", decimals(median))
	}
	return svg(bottom+axisHeight, content)
}

// The units of a curve.
const curveX, curveY = "ns/op", "B-layers"

// curve shows the medians of two units of each side, one by the other, at each work.
func (s *section) curve() string {
	nameX, scaleX := display(curveX)
	nameY, scaleY := display(curveY)
	var sides []string
	var xs, ys []float64
	for _, r := range s.rows {
		xs, ys = append(xs, quantile(r.values[curveX], 0.5)*scaleX), append(ys, quantile(r.values[curveY], 0.5)*scaleY)
		if !slices.Contains(sides, r.side) {
			sides = append(sides, r.side)
		}
	}
	across := newAxis(xs, curveLeft, plotWidth-curveRight)
	up := newAxis(ys, curveHeight-axisHeight, curveTop)
	content := across.horizontal(curveTop, curveHeight-axisHeight, nameX) + up.vertical(curveLeft, plotWidth-curveRight, nameY)
	for _, side := range sides {
		points, x, y := "", 0.0, 0.0
		for i, r := range s.rows {
			if r.side != side {
				continue
			}
			x, y = across.at(xs[i]), up.at(ys[i])
			points += fmt.Sprintf("%.1f,%.1f ", x, y)
			content += dot(class(side), x, y, 4) + text(x, y-8, "middle", r.work[strings.LastIndex(r.work, " ")+1:])
		}
		content += text(x+10, y+14, "start", side)
		content += fmt.Sprintf("<polyline class=\"%sl\" points=\"%s\"/>\n", class(side), points)
	}
	return svg(curveHeight, content)
}

// An axis places values between two ends of a plot.
type axis struct{ least, step, most, from, to float64 }

// newAxis begins and ends at round values.
func newAxis(values []float64, from, to float64) axis {
	least, most := slices.Min(values), slices.Max(values)
	distance := max(most-least, math.Abs(most)*1e-6, 1e-9) // they may be the same
	step := math.Pow(10, math.Floor(math.Log10(distance)))
	for _, finer := range []float64{2, 2.5} {
		if distance/step < 4 {
			step /= finer
		}
	}
	const rounding = 1e-9 // of the quotients
	from0, to0 := math.Floor(least/step+rounding)*step, math.Ceil(most/step-rounding)*step
	return axis{from0, step, max(to0, from0+step), from, to}
}

func (a axis) at(v float64) float64 {
	return a.from + (a.to-a.from)*(v-a.least)/(a.most-a.least)
}

func (a axis) ticks() (all []float64) {
	for i := range int(math.Round((a.most-a.least)/a.step)) + 1 {
		all = append(all, a.least+float64(i)*a.step)
	}
	return all
}

// horizontal is a grid with the values and their name below it.
func (a axis) horizontal(top, bottom float64, name string) (content string) {
	for _, v := range a.ticks() {
		content += line(a.at(v), top, a.at(v), bottom) + text(a.at(v), bottom+16, "middle", fmt.Sprintf("%.4g", v))
	}
	return content + text((a.from+a.to)/2, bottom+34, "middle", name)
}

// vertical is a grid with the values left of it, and their name above it.
func (a axis) vertical(left, right float64, name string) (content string) {
	for _, v := range a.ticks() {
		content += line(left, a.at(v), right, a.at(v)) + text(left-8, a.at(v)+4, "end", fmt.Sprintf("%.4g", v))
	}
	return content + text(left, 12, "start", name)
}
