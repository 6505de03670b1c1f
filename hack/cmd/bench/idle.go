package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// An idler is a daemon that has nothing to do, with what each start took.
type idler struct {
	name, binary string
	flags        []string
}

type idleStart struct {
	took   time.Duration // from the start of the process to its first answer
	memory int64         // bytes, resident, some seconds later
}

// idle starts each daemon on a root of its own, in turns: a first time on an empty
// root, which does not count, and after that on what it left.
func idle(ctx context.Context, c *config) ([]section, error) {
	all := &results{}
	idlers := []*idler{
		{name: "stock", binary: "buildkitd"},
		{name: ourName, binary: "buildkitd-esgz"},
		{name: ourName + ", lazy", binary: "buildkitd-esgz", flags: []string{"--oci-worker-snapshotter=stargz"}},
	}
	err := turns(c.runs+1, idlers, func(run int, i *idler) error {
		s, err := i.start(ctx, c)
		if err != nil {
			return fmt.Errorf("%s: %w", i.name, err)
		}
		if run == 1 {
			return nil
		}
		log.Printf("run %d of %d, %s: %.3f s, %.1f MiB", run-1, c.runs, i.name, s.took.Seconds(), float64(s.memory)/(1<<20))
		all.add("idle", i.name, wall(s.took), bytesIn("resident", s.memory))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []section{all.section("A daemon without builds", "Time is until the first answer to a client, memory three seconds later.")}, nil
}

// start waits for the daemon's first answer.
func (i *idler) start(ctx context.Context, c *config) (s idleStart, err error) {
	dir := filepath.Join(c.work, strings.ReplaceAll(i.name, ", ", "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return s, err
	}
	d := &daemon{&harness.Daemon{Tools: c.tools, Binary: c.tools.Path(i.binary), Dir: dir, Flags: i.flags}, c}
	start := time.Now()
	if err := d.Start(ctx); err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, d.Stop()) }()
	s.took = time.Since(start)
	time.Sleep(3 * time.Second)
	s.memory, err = bytesOf(d.proc("smaps_rollup"), "Rss:")
	return s, err
}
