package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A daemon is a build daemon on a root that it may find prepared.
type daemon struct {
	c    *config
	cmd  *exec.Cmd
	addr string
	log  bytes.Buffer
	done chan error
}

func startDaemon(ctx context.Context, c *config, binary, root string, flags ...string) (*daemon, error) {
	d := &daemon{c: c, addr: "unix://" + filepath.Join(c.work, "buildkitd.sock"), done: make(chan error, 1)}
	d.cmd = exec.Command(binary, append(flags, "--root", root, "--addr", d.addr, "--containerd-worker=false", "--oci-worker-net=host")...)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.Env = append(os.Environ(), "TMPDIR="+c.work)
	// Ctrl-C is for this process, which stops the daemon in order.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { d.done <- d.cmd.Wait() }()
	if err := d.untilReady(ctx); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

func (d *daemon) untilReady(ctx context.Context) error {
	for range 300 {
		err := exec.CommandContext(ctx, d.c.tool("buildctl"), "--addr", d.addr, "debug", "workers").Run()
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("%s does not answer", d.cmd.Path)
}

func (d *daemon) stop() error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.done:
		return nil
	case <-time.After(30 * time.Second):
		return errors.Join(fmt.Errorf("%s did not stop", d.cmd.Path), d.cmd.Process.Kill(), <-d.done)
	}
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
