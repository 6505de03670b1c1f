package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A step is a RUN step of the Dockerfile, with what it took each time.
type step struct {
	name            string
	begins          string // its name
	plain, recorded []time.Duration
}

// recordSteps builds the same steps in turns, with their reads recorded and without,
// with one daemon. Only the steps measured run again; what comes before them is
// there from a first round that does not count.
func recordSteps(ctx context.Context, c *config) (sections []section, err error) {
	steps := []*step{
		{name: "`apt-get install` of some 50 packages", begins: "] RUN : apt-get"},
		{name: "`make -j2` of 300 C files", begins: "] RUN : make"},
	}
	d, err := startDaemon(ctx, c, ourName, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	for round := range c.runs + 1 {
		if err := d.recordRound(ctx, round, steps); err != nil {
			return nil, err
		}
		if round == 0 {
			for _, s := range steps {
				s.plain, s.recorded = nil, nil
			}
		}
	}
	s := recordSection(steps)
	s.raw = &results{}
	for _, st := range steps {
		for i := range st.plain {
			s.raw.add(st.name, "plain", wall(st.plain[i]))
			s.raw.add(st.name, "recorded", wall(st.recorded[i]))
		}
	}
	return []section{s}, nil
}

// recordRound builds in both ways. Who comes first changes from round to round.
func (d *daemon) recordRound(ctx context.Context, round int, steps []*step) error {
	for turn := range 2 {
		recorded := (round+turn)%2 == 1
		workload := "none"
		if recorded {
			workload = "run"
		}
		progress, err := d.buildRound(ctx, fmt.Sprintf("%d, %s", round, workload), workload)
		if err != nil {
			return err
		}
		for _, s := range steps {
			took, err := stepTime(progress, s.begins)
			if err != nil {
				return err
			}
			log.Printf("round %d of %d, %s, estargz-profile=%s: %.2fs", round, d.c.runs, s.name, workload, took.Seconds())
			if recorded {
				s.recorded = append(s.recorded, took)
			} else {
				s.plain = append(s.plain, took)
			}
		}
	}
	return nil
}

// buildRound returns the progress, as JSON.
func (d *daemon) buildRound(ctx context.Context, round, workload string) (string, error) {
	unix.Sync() // what is written later is somebody else's time
	output := "type=image,name=bench,push=false,oci-mediatypes=true,compression=estargz,compression-level=1,estargz-profile=" + workload
	return d.build(ctx, "record", output, "--set", "record.args.ROUND="+round)
}

// stepTime finds in the progress how long a step took by the daemon's clock.
func stepTime(progress, begins string) (time.Duration, error) {
	var took time.Duration
	for status := range statuses(progress) {
		for _, v := range status.Vertexes {
			if strings.Contains(v.Name, begins) && v.Completed != nil && !v.Cached {
				took = v.Completed.Sub(*v.Started)
			}
		}
	}
	if took == 0 {
		return 0, fmt.Errorf("step %q did not run", begins)
	}
	return took, nil
}

func recordSection(steps []*step) section {
	s := section{
		Title: "A step, and the same step recorded",
		Table: table{Columns: []string{"RUN step", "not recorded", "recorded", "ratio of medians", "median of ratios", "ratios, quartiles"}},
		Notes: []string{"A ratio is that of two builds one after the other, of which now the one and now the other comes first."},
	}
	same := func(d time.Duration) time.Duration { return d }
	for _, st := range steps {
		plain, recorded := median(st.plain, same), median(st.recorded, same)
		var ratios []float64
		for i := range st.plain {
			ratios = append(ratios, ratio(st.recorded[i], st.plain[i]))
		}
		slices.Sort(ratios)
		s.Table.add(st.name, fmt.Sprintf("%.2f s", plain.Seconds()), fmt.Sprintf("%.2f s", recorded.Seconds()),
			fmt.Sprintf("%.3f", ratio(recorded, plain)), fmt.Sprintf("%.3f", ratios[len(ratios)/2]),
			fmt.Sprintf("%.3f to %.3f", ratios[len(ratios)/4], ratios[len(ratios)*3/4]))
	}
	return s
}
