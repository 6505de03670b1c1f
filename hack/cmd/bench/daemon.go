package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// A daemon is a build daemon with a directory of its own.
type daemon struct {
	*harness.Daemon
	c *config
}

// startDaemon starts a daemon with a copy of a root, or with an empty one.
func startDaemon(ctx context.Context, c *config, binary, prepared string, flags ...string) (*daemon, error) {
	dir, err := os.MkdirTemp(c.work, "daemon")
	if err != nil {
		return nil, err
	}
	d := &daemon{&harness.Daemon{Tools: c.tools, Binary: c.tools.Path(binary), Dir: dir, Flags: flags}, c}
	if prepared != "" {
		if out, err := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", prepared, d.root()).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("copy the prepared root: %w\n%s", err, out)
		}
	}
	unix.Sync() // what is written later is somebody else's time
	if err := d.Start(ctx); err != nil {
		return nil, err
	}
	if err := d.CreateBuilder(ctx); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

func (d *daemon) root() string { return filepath.Join(d.Dir, "root") }

// stop ends the daemon and removes all that it had.
func (d *daemon) stop() error {
	err := errors.Join(d.Stop(), harness.RemoveAll(d.Dir))
	unix.Sync() // what is written later is somebody else's time
	return err
}

// cpuTime is what the daemon and its children that have ended used so far.
func (d *daemon) cpuTime() (time.Duration, error) {
	stat, err := os.ReadFile(d.proc("stat"))
	if err != nil {
		return 0, err
	}
	// The second field is a name in parentheses, which may hold spaces. After
	// it, utime, stime, cutime and cstime are the 12th to the 15th.
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	const first, last, ticks = 11, 14, 100
	var sum int64
	for _, f := range fields[first : last+1] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", d.proc("stat"), err)
		}
		sum += n
	}
	return time.Duration(sum) * time.Second / ticks, nil
}

// forgetPeak makes peakMemory start from now.
func (d *daemon) forgetPeak() error {
	return os.WriteFile(d.proc("clear_refs"), []byte("5"), 0)
}

// peakMemory is in bytes, resident.
func (d *daemon) peakMemory() (int64, error) { return bytesOf(d.proc("status"), "VmHWM:") }

// bytesOf reads a line of a file that the kernel writes, in kB.
func bytesOf(file, name string) (int64, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			var kib int64
			_, err := fmt.Sscanf(rest, "%d kB", &kib)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s: no %s", file, name)
}

func (d *daemon) proc(file string) string {
	return filepath.Join("/proc", strconv.Itoa(d.Pid()), file)
}
