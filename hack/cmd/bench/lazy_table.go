package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
)

// coldSection compares each build with those upon the same image, or the same
// work, before it.
func coldSection(link shaped.Link, jobs []*job) section {
	s := section{
		Title: fmt.Sprintf("Cold builds behind %s and %d Mbit/s", link.Delay, link.BytesPerSecond*8/1e6),
		Table: table{Columns: []string{"cold build", "image", "step", "seconds", "MB", "requests", "of overlayfs", "of stock stargz"}},
		Bars:  &bars{Unit: "s"},
	}
	for _, j := range jobs {
		s.Table.add(j.who.name, j.tag, "`"+j.commands+"`", fmt.Sprintf("%.2f", j.wall().Seconds()),
			fmt.Sprintf("%.1f", megabytes(median(j.runs, func(p pulled) int64 { return p.bytes }))),
			fmt.Sprint(median(j.runs, func(p pulled) int { return p.requests })),
			j.ratio(jobs, func(o *job) bool { return o.who == eager }),
			j.ratio(jobs, func(o *job) bool { return o.who == stockLazy && o.tag == j.tag }))
		name, _, _ := strings.Cut(j.commands, " ")
		s.Bars.add(j.who.name+", "+j.tag+", "+name, j.wall().Seconds())
	}
	return s
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

func warmSection(plain, ours times) section {
	s := section{
		Title: "Everything is here, and is read",
		Table: table{Columns: []string{"work", "time", "overlayfs", ourName + " stargz", "ratio"}},
	}
	for i, w := range warms {
		for _, n := range []string{"first", "second"} {
			p, o := middle(plain[i][n]), middle(ours[i][n])
			s.Table.add(w.name, n, fmt.Sprintf("%.0f %s", p, w.unit), fmt.Sprintf("%.0f %s", o, w.unit), fmt.Sprintf("%.2f", o/p))
		}
	}
	return s
}
