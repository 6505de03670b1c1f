package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// An idler is a daemon that has nothing to do.
type idler struct {
	name, binary string
	copy         string // of the binary
	flags        []string
}

// idle starts each daemon on a root of its own, in turns: a first time on an empty
// root, which does not count, and after that on what it left.
func (b *bench) idle(ctx context.Context) error {
	b.startSection("From the start of a daemon to its first answer, and its memory three seconds later")
	idlers := []idler{
		{name: "stock", binary: "buildkitd"},
		{name: ourName, binary: ourName},
		{name: ourName + ", lazy", binary: ourName, flags: []string{"--oci-worker-snapshotter=stargz"}},
	}
	for n, i := range idlers {
		// How much of a program is resident depends on how it came into the page cache:
		// by a third in what was measured. So each is a copy made now.
		idlers[n].copy = filepath.Join(b.work, fmt.Sprint("idle-", n), filepath.Base(i.binary))
		if err := copyProgram(idlers[n].copy, b.tools.Path(i.binary)); err != nil {
			return err
		}
		if _, _, _, err := b.startIdle(ctx, idlers[n]); err != nil {
			return fmt.Errorf("%s: %w", i.name, err)
		}
	}
	return turns(b.runs, idlers, func(i idler) error {
		took, resident, anonymous, err := b.startIdle(ctx, i)
		if err != nil {
			return fmt.Errorf("%s: %w", i.name, err)
		}
		b.add("idle", i.name, wall(took), bytesIn("resident", resident), bytesIn("anonymous", anonymous))
		return nil
	})
}

func (b *bench) startIdle(ctx context.Context, i idler) (took time.Duration, resident, anonymous int64, err error) {
	dir := filepath.Join(b.work, strings.ReplaceAll(i.name, ", ", "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, 0, 0, err
	}
	d := &daemon{&harness.Daemon{Tools: b.tools, Binary: i.copy, Dir: dir, Flags: i.flags}, b}
	start := time.Now()
	if err := d.Start(ctx); err != nil {
		return 0, 0, 0, err
	}
	took = time.Since(start)
	time.Sleep(3 * time.Second)
	if resident, err = d.memory("smaps_rollup", "Rss:"); err == nil {
		anonymous, err = d.memory("smaps_rollup", "Anonymous:")
	}
	return took, resident, anonymous, errors.Join(err, d.Stop())
}

// copyProgram has the copy on disk when it returns, so that no start waits for it.
func copyProgram(to, from string) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(to, raw, 0o755); err != nil {
		return err
	}
	unix.Sync()
	return nil
}
