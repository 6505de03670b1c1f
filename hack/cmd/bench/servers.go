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

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// A daemon is a build daemon with a directory of its own.
type daemon struct {
	*harness.Daemon
	b *bench
}

// startDaemon starts a daemon with a copy of a root, or with an empty one.
func (b *bench) startDaemon(ctx context.Context, binary, prepared string, flags ...string) (*daemon, error) {
	dir, err := os.MkdirTemp(b.work, "daemon")
	if err != nil {
		return nil, err
	}
	d := &daemon{&harness.Daemon{Tools: b.tools, Binary: b.tools.Path(binary), Dir: dir, Flags: flags}, b}
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

// withDaemon starts a daemon as startDaemon does, and stops it when do has returned.
func (b *bench) withDaemon(ctx context.Context, binary, prepared string, do func(*daemon) error, flags ...string) error {
	d, err := b.startDaemon(ctx, binary, prepared, flags...)
	if err != nil {
		return err
	}
	return errors.Join(do(d), d.stop())
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
	const first, last, ticks = 11, 14, 100
	var sum int64
	for _, f := range strings.Fields(rest)[first : last+1] {
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
func (d *daemon) peakMemory() (int64, error) { return d.memory("status", "VmHWM:") }

// memory reads a line of a file that the kernel writes, in kB, and returns bytes.
func (d *daemon) memory(file, name string) (int64, error) {
	raw, err := os.ReadFile(d.proc(file))
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
	return 0, fmt.Errorf("%s: no %s", d.proc(file), name)
}

func (d *daemon) proc(file string) string {
	return filepath.Join("/proc", strconv.Itoa(d.Pid()), file)
}

// A registry is one on loopback, with a directory of its own.
type registry struct{ *harness.Registry }

func (r *registry) ref(name, tag string) string { return r.Address + "/" + name + ":" + tag }

// withRegistry starts an empty registry, and removes it when do has returned.
func (b *bench) withRegistry(ctx context.Context, do func(*registry) error) error {
	dir, err := os.MkdirTemp(b.work, "registry")
	if err != nil {
		return err
	}
	r, err := harness.StartRegistry(ctx, b.tools, dir)
	if err != nil {
		return err
	}
	return errors.Join(do(&registry{r}), r.Stop(), os.RemoveAll(dir))
}

// withLine puts a line before the registry.
func (r *registry) withLine(link shaped.Link, do func(*shaped.Proxy) error) error {
	line, err := shaped.New(r.Address, link)
	if err != nil {
		return err
	}
	return errors.Join(do(line), line.Close())
}

// withNode starts a node that has nothing yet, with the stock stargz-snapshotter as
// upstream configures it.
func (b *bench) withNode(ctx context.Context, do func(*harness.Node) error) error {
	dir, err := os.MkdirTemp(b.work, "node")
	if err != nil {
		return err
	}
	unix.Sync() // what the last one left to be written
	n, err := harness.StartNode(ctx, b.tools, dir, "-prefetch")
	if err != nil {
		return err
	}
	return errors.Join(do(n), n.Stop(), harness.RemoveAll(dir))
}

// dropCaches makes the kernel forget files and directories that it has read.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}
