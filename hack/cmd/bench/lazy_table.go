package main

import (
	"fmt"
	"strings"
	"time"
)

// coldTable compares each build with those upon the same image, or the same
// work, before it.
func coldTable(jobs []*job) string {
	var b strings.Builder
	b.WriteString("| cold build | image | step | seconds | MB | requests | of overlayfs | of stock stargz |\n")
	b.WriteString("|---|---|---|---:|---:|---:|---:|---:|\n")
	for _, j := range jobs {
		fmt.Fprintf(&b, "| %s | %s | `%s` | %.2f | %.1f | %d | %s | %s |\n", j.who.name, j.tag, j.commands, j.wall().Seconds(),
			float64(median(j.runs, func(p pulled) int64 { return p.bytes }))/1e6, median(j.runs, func(p pulled) int { return p.requests }),
			j.ratio(jobs, func(o *job) bool { return o.who == eager }),
			j.ratio(jobs, func(o *job) bool { return o.who == stockLazy && o.tag == j.tag }))
	}
	return b.String()
}

func (j *job) wall() time.Duration {
	return median(j.runs, func(p pulled) time.Duration { return p.wall })
}

// ratio is the time of a job by that of another with the same step.
func (j *job) ratio(jobs []*job, other func(*job) bool) string {
	for _, o := range jobs {
		if o.commands == j.commands && other(o) {
			return fmt.Sprintf("%.2f", j.wall().Seconds()/o.wall().Seconds())
		}
	}
	return "-"
}

func warmTable(plain, ours times) string {
	var b strings.Builder
	b.WriteString("| everything is here | time | overlayfs | buildkitd-esgz stargz | ratio |\n")
	b.WriteString("|---|---|---:|---:|---:|\n")
	for i, w := range warms {
		for _, n := range []string{"first", "second"} {
			p, o := middle(plain[i][n]), middle(ours[i][n])
			fmt.Fprintf(&b, "| %s | %s | %.0f %s | %.0f %s | %.2f |\n", w.name, n, p, w.unit, o, w.unit, o/p)
		}
	}
	return b.String()
}
