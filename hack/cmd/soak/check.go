package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/sys/mountinfo"
)

// What the databases and the directories take besides what is in them.
const overhead = 1 << 20

// check polls until nothing of the daemon's is where it should not be.
func (d *daemon) check(ctx context.Context) (err error) {
	return d.eventually(ctx, func() error {
		return errors.Join(d.collect(ctx), d.checkRunning(ctx))
	})
}

// collect lets the daemon's runtime collect garbage: the error of a step
// that failed keeps its records in use until then.
func (d *daemon) collect(ctx context.Context) error {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", d.debug)
	}}}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon/debug/gc", nil)
	if err != nil {
		return err
	}
	answer, err := c.Do(r)
	if err != nil {
		return err
	}
	return answer.Body.Close()
}

func (d *daemon) checkRunning(ctx context.Context) error {
	return errors.Join(d.checkUsage(ctx), d.checkMounts(), checkProcesses(d))
}

// checkEmpty prunes all, ends the daemon, and looks for what is left.
func (d *daemon) checkEmpty(ctx context.Context) error {
	err := d.eventually(ctx, func() error {
		if err := d.forget(ctx); err != nil {
			return err
		}
		if err := d.client.Prune(ctx, nil, client.PruneAll); err != nil {
			return fmt.Errorf("prune: %w", err)
		}
		n, err := occupied(d.worker())
		if err == nil && n > overhead {
			err = fmt.Errorf("%d bytes are left of a pruned cache:\n%s", n, listing(d.worker()))
		}
		return errors.Join(err, d.checkUsage(ctx))
	})
	if err != nil {
		return err
	}
	if mounts, err := d.mounts(); err != nil || len(mounts) > 0 {
		return fmt.Errorf("mounts of a pruned cache: %q %w", mounts, err)
	}
	if err := d.stop(); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	if err := d.checkStopped(); err != nil {
		return err
	}
	if err := d.start(); err != nil {
		return err
	}
	return d.nothing("content/ingest/*")
}

// eventually retries, since what nobody uses any more is removed in the
// background, and what nobody reads is fetched there.
func (d *daemon) eventually(ctx context.Context, check func() error) (err error) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if err = check(); err == nil {
			return nil
		}
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (d *daemon) worker() string { return filepath.Join(d.root, "runc-"+d.snapshotter) }

// forget deletes the history of builds: what it keeps does not count as cache.
func (d *daemon) forget(ctx context.Context) error {
	control := d.client.ControlClient()
	events, err := control.ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{EarlyExit: true})
	if err != nil {
		return fmt.Errorf("history: %w", err)
	}
	for {
		e, err := events.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && e.Type == controlapi.BuildHistoryEventType_COMPLETE {
			_, err = control.UpdateBuildHistory(ctx, &controlapi.UpdateBuildHistoryRequest{Ref: e.Record.Ref, Delete: true})
		}
		if err != nil {
			return fmt.Errorf("history: %w", err)
		}
	}
}

func (d *daemon) checkUsage(ctx context.Context) error {
	if err := d.forget(ctx); err != nil {
		return err
	}
	// Takes no record, but what an interrupted pull left goes with it.
	if err := d.client.Prune(ctx, nil, client.WithKeepOpt(1000*time.Hour, 0, 0, 0)); err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	records, err := d.client.DiskUsage(ctx)
	if err != nil {
		return fmt.Errorf("du: %w", err)
	}
	var told int64
	for _, r := range records {
		told += r.Size
		if r.InUse {
			return fmt.Errorf("%w: %s %s", errInUse, r.ID, r.Description)
		}
	}
	there, err := occupied(d.worker())
	if err != nil {
		return err
	}
	if diff := max(told-there, there-told); diff > max(told, there)/100+overhead {
		return fmt.Errorf("du says %d bytes, the disk has %d: %+d\n%s", told, there, told-there, listing(d.worker()))
	}
	return nil
}

// occupied is what files of snapshots, content and lazy layers take of the disk.
func occupied(dir string) (sum int64, err error) {
	seen := map[uint64]bool{}
	err = walk(dir, func(path string, st *syscall.Stat_t) {
		if !seen[st.Ino] {
			seen[st.Ino] = true
			sum += st.Blocks * 512
		}
	})
	return sum, err
}

// walk tells of files and directories on the same filesystem, without the
// databases.
func walk(dir string, f func(path string, st *syscall.Stat_t)) error {
	var top syscall.Stat_t
	if err := syscall.Lstat(dir, &top); err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		var st syscall.Stat_t
		if err == nil {
			err = syscall.Lstat(path, &st)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case st.Dev != top.Dev:
			return fs.SkipDir // a lazy layer
		}
		if !strings.HasSuffix(path, ".db") {
			f(path, &st)
		}
		return nil
	})
}

// listing names the largest directories, for a person who looks at a failure.
func listing(dir string) string {
	sums := map[string]int64{}
	_ = walk(dir, func(path string, st *syscall.Stat_t) {
		rel, _ := filepath.Rel(dir, path)
		parts := strings.Split(rel, "/")
		sums[strings.Join(parts[:min(len(parts), 3)], "/")] += st.Blocks * 512
	})
	var b strings.Builder
	for name, sum := range sums {
		if sum > overhead/32 {
			fmt.Fprintf(&b, "%12d %s\n", sum, name)
		}
	}
	return b.String()
}

func (d *daemon) mounts() (found []string, err error) {
	dir := filepath.Dir(d.root)
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	for _, m := range mounts {
		if m.Mountpoint != d.root {
			found = append(found, m.Mountpoint)
		}
	}
	return found, err
}

// checkMounts looks for mounts that are not lazy layers.
func (d *daemon) checkMounts() error {
	mounts, err := d.mounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if !strings.HasPrefix(m, filepath.Join(d.worker(), "snapshots", "snapshotter")+"/") {
			return fmt.Errorf("mounted, while nobody builds: %s", m)
		}
		if _, err := os.ReadDir(m); err != nil {
			return fmt.Errorf("a dead mount: %w", err)
		}
	}
	return nil
}

// checkProcesses looks for those of build steps: they have mounts of their own.
func checkProcesses(d *daemon) error {
	all, err := filepath.Glob("/proc/[0-9]*/mountinfo")
	if err != nil {
		return err
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	for _, file := range all {
		dir := filepath.Dir(file)
		if ns, err := os.Readlink(filepath.Join(dir, "ns/mnt")); err != nil || ns == own {
			continue
		}
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), d.root+"/") {
			command, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
			return fmt.Errorf("process %s runs, while nobody builds: %q", filepath.Base(dir), command)
		}
	}
	return nil
}

// checkStopped looks for what a daemon that has ended leaves besides its cache.
func (d *daemon) checkStopped() error {
	mounts, err := d.mounts()
	if err != nil || len(mounts) > 0 {
		return fmt.Errorf("mounts of a daemon that has ended: %q %w", mounts, err)
	}
	// What a full disk keeps the content store from beginning to write stays a
	// directory without data until the next start.
	if err := d.nothing("content/ingest/*/data", "executor/*/config.json", "snapshots/tmp/*"); err != nil {
		return err
	}
	if err := d.checkTemporary(); err != nil {
		return err
	}
	return d.checkLeases()
}

// checkTemporary passes over directories that are empty: those that a daemon makes to
// mount something there stay if it is killed before, and nobody can tell whose they are.
func (d *daemon) checkTemporary() error {
	left, err := filepath.Glob(filepath.Join(d.Temp(), "*"))
	if err != nil {
		return err
	}
	for _, file := range left {
		if syscall.Rmdir(file) != nil {
			return fmt.Errorf("a temporary file of a daemon that has ended: %s", file)
		}
	}
	return nil
}

// nothing looks for files in the directory of the worker.
func (d *daemon) nothing(patterns ...string) error {
	for _, pattern := range patterns {
		left, err := filepath.Glob(filepath.Join(d.worker(), pattern))
		if err != nil || len(left) > 0 {
			return fmt.Errorf("left by a daemon that has ended: %q %w", left, err)
		}
	}
	return nil
}
