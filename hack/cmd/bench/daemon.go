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
)

// A daemon is a build daemon on a root that it may find prepared.
type daemon struct {
	*server
	c    *config
	addr string
}

func startDaemon(ctx context.Context, c *config, binary, root string, flags ...string) (*daemon, error) {
	addr := "unix://" + filepath.Join(c.work, "buildkitd.sock")
	cmd := exec.Command(binary, append(flags, "--root", root, "--addr", addr, "--containerd-worker=false", "--oci-worker-net=host")...)
	cmd.Env = append(os.Environ(), "TMPDIR="+c.work)
	s, err := startServer(ctx, cmd, func() bool {
		return exec.CommandContext(ctx, c.tool("buildctl"), "--addr", addr, "debug", "workers").Run() == nil
	})
	return &daemon{s, c, addr}, err
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
func (d *daemon) peakMemory() (int64, error) {
	status, err := os.ReadFile(d.proc("status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			var kib int64
			_, err := fmt.Sscanf(rest, "%d kB", &kib)
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmHWM")
}

func (d *daemon) proc(file string) string {
	return filepath.Join("/proc", strconv.Itoa(d.cmd.Process.Pid), file)
}
