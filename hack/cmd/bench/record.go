package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
	"golang.org/x/sys/unix"
)

// A step is a RUN step of the Dockerfile, with what it took each time.
type step struct {
	name            string
	begins          string // its command
	plain, recorded []time.Duration
}

// recordSteps builds the same steps in turns, with their reads recorded and without,
// with one daemon. Only the steps measured run again; what comes before them is
// there from a first round that does not count.
func recordSteps(ctx context.Context, c *config) (err error) {
	steps := []*step{
		{name: "`apt-get install` of some 50 packages", begins: ": apt-get"},
		{name: "`make -j2` of 300 C files", begins: ": make"},
	}
	if err := writeRecordTargets(c); err != nil {
		return err
	}
	d, err := startDaemon(ctx, c, c.tool("buildkitd-esgz"), filepath.Join(c.work, "root"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.createBuilder(ctx); err != nil {
		return err
	}
	for round := range c.runs + 1 {
		if err := d.recordRound(ctx, round, steps); err != nil {
			return err
		}
		if round == 0 {
			for _, s := range steps {
				s.plain, s.recorded = nil, nil
			}
		}
	}
	fmt.Print(recordTable(steps))
	fmt.Printf("\nMedians of %d runs; %s.\n", c.runs, machine())
	return nil
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
	cmd := d.command(ctx, "buildx", "bake", "--file", recordTargets(d.c), "--progress=rawjson", "record", "--set", "record.args.ROUND="+round,
		"--set", "record.output=type=image,name=bench,push=false,oci-mediatypes=true,compression=estargz,compression-level=1,estargz-profile="+workload)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		progress := stderr.String()
		return "", fmt.Errorf("buildx bake: %w\n%s", err, progress[max(0, len(progress)-4096):])
	}
	return stderr.String(), nil
}

func recordTargets(c *config) string { return filepath.Join(c.work, "record.json") }

func writeRecordTargets(c *config) error {
	image, err := filepath.Abs(filepath.Join(c.repo, "hack", "image"))
	if err != nil {
		return err
	}
	raw, err := json.Marshal(map[string]any{"target": map[string]bakeTarget{
		"base": {Context: c.base, Dockerfile: filepath.Join(image, "base.Dockerfile")},
		"record": {
			Context: image, Dockerfile: filepath.Join(image, "bench", "record.Dockerfile"),
			Contexts: map[string]string{"base": "target:base"}, Args: map[string]string{"BASE": "base"},
		},
	}})
	if err != nil {
		return err
	}
	return os.WriteFile(recordTargets(c), raw, 0o600)
}

// stepTime finds in the progress how long a RUN step took by the daemon's clock.
func stepTime(progress, begins string) (time.Duration, error) {
	var took time.Duration
	for dec := json.NewDecoder(strings.NewReader(progress)); dec.More(); {
		var status client.SolveStatus
		if err := dec.Decode(&status); err != nil {
			return 0, fmt.Errorf("progress: %w", err)
		}
		for _, v := range status.Vertexes {
			if strings.Contains(v.Name, "] RUN "+begins) && v.Completed != nil && !v.Cached {
				took = v.Completed.Sub(*v.Started)
			}
		}
	}
	if took == 0 {
		return 0, fmt.Errorf("step %q did not run", begins)
	}
	return took, nil
}

func recordTable(steps []*step) string {
	var b strings.Builder
	b.WriteString("| RUN step | not recorded | recorded | ratio |\n")
	b.WriteString("|---|---:|---:|---:|\n")
	same := func(d time.Duration) time.Duration { return d }
	for _, s := range steps {
		plain, recorded := median(s.plain, same), median(s.recorded, same)
		fmt.Fprintf(&b, "| %s | %.2f s | %.2f s | %.3f |\n", s.name, plain.Seconds(), recorded.Seconds(), ratio(recorded, plain))
	}
	return b.String()
}
