package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// A world is a registry with images, and daemons that build upon them.
type world struct {
	opt      options
	registry *harness.Registry
	daemons  []*daemon
	logins   session.Attachable

	steps, disturbed, failed int

	mu     sync.Mutex
	images []image
	serial int
}

func newWorld(ctx context.Context, opt options) (w *world, err error) {
	w = &world{opt: opt}
	defer func() {
		if err != nil {
			w.showLogs()
			err = errors.Join(err, w.close())
		}
	}()
	if err := os.MkdirAll(filepath.Join(opt.dir, "tmp"), 0o700); err != nil {
		return nil, err
	}
	if w.registry, err = harness.StartRegistry(ctx, harness.Tools(opt.bin), opt.dir); err != nil {
		return nil, err
	}
	r := rand.New(rand.NewPCG(opt.seed, 1<<63))
	for _, snapshotter := range []string{"stargz", "overlayfs"} {
		d, err := w.newDaemon(snapshotter, r)
		if err != nil {
			return nil, err
		}
		w.daemons = append(w.daemons, d)
	}
	if err := w.logIn(); err != nil {
		return nil, err
	}
	return w, w.pushBases(ctx, r)
}

func (w *world) close() (err error) {
	for _, d := range w.daemons {
		err = errors.Join(err, d.stop(), d.gate.server.Close(), syscall.Unmount(d.root, 0))
	}
	if w.registry != nil {
		err = errors.Join(err, w.registry.Stop())
	}
	return err
}

func (w *world) showLogs() {
	for _, d := range w.daemons {
		if d.Process != nil {
			log.Printf("log of %s:\n%s", d.name, d.Tail())
		}
	}
}

// A daemon has a disk and a way to the registry of its own.
type daemon struct {
	*harness.Daemon
	w           *world
	name        string
	snapshotter string
	root        string // a filesystem of diskSize
	gate        *gate
	debug       string // a socket
	client      *client.Client
}

// patience is how long something may take that usually takes a second, on a machine
// that does much else.
const patience = time.Minute

const diskSize = 768 << 20

// The daemon gives up soon where it would wait for a registry for minutes, and
// has rules that make it collect garbage all the time.
const daemonConfig = `
[worker.oci]
  maxUsedSpace = "256MB"
  reservedSpace = "16MB"
[worker.oci.stargzSnapshotter]
  deadline = "5s"
  stall = "1s"
  mount_timeout = "5s"
`

func (w *world) newDaemon(snapshotter string, r *rand.Rand) (*daemon, error) {
	dir := filepath.Join(w.opt.dir, snapshotter)
	d := &daemon{
		w: w, name: snapshotter, snapshotter: snapshotter, root: filepath.Join(dir, "root"), debug: filepath.Join(dir, "debug"),
	}
	d.Daemon = &harness.Daemon{Tools: harness.Tools(w.opt.bin), Binary: w.opt.daemon, Dir: dir, Flags: []string{
		"--config", filepath.Join(dir, "toml"), "--debugaddr", "unix://" + d.debug, "--oci-worker-snapshotter", snapshotter,
	}}
	if err := os.MkdirAll(d.root, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "toml"), []byte(daemonConfig), 0o600); err != nil {
		return nil, err
	}
	if err := syscall.Mount("tmpfs", d.root, "tmpfs", 0, fmt.Sprint("size=", diskSize)); err != nil {
		return nil, fmt.Errorf("disk of %s: %w", snapshotter, err)
	}
	login, name := randomLogin(r)
	log.Printf("%s: its registry wants %s", d.name, name)
	var err error
	if d.gate, err = newGate(w.registry.Address, login); err != nil {
		return nil, err
	}
	if d.client, err = client.New(context.Background(), d.Address()); err != nil {
		return nil, err
	}
	return d, d.start()
}

func (d *daemon) start() error {
	ctx := context.Background()
	if err := d.Start(ctx); err != nil {
		return err
	}
	// Its client waits between its attempts to connect.
	return d.eventually(ctx, func() error {
		_, err := d.client.ListWorkers(ctx)
		return err
	})
}

// stop returns an error if the daemon has to be killed, or fails at its end.
func (d *daemon) stop() error {
	if d.Process == nil {
		return nil
	}
	return errors.Join(d.Stop(), d.Err())
}

// fill leaves that many bytes of the daemon's disk.
func (d *daemon) fill(left uint64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(d.root, &st); err != nil {
		return err
	}
	free := st.Bavail * uint64(st.Bsize)
	if free <= left {
		return nil
	}
	f, err := os.Create(filepath.Join(d.root, "filler"))
	if err != nil {
		return err
	}
	defer f.Close()
	return syscall.Fallocate(int(f.Fd()), 0, 0, int64(free-left))
}
