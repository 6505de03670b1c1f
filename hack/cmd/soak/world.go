package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
)

// A world is a registry with images, and daemons that build upon them.
type world struct {
	opt     options
	daemons []*daemon
	logins  session.Attachable

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
	return err
}

func (w *world) showLogs() {
	for _, d := range w.daemons {
		out, _ := exec.Command("tail", "-n", "30", d.log).Output()
		log.Printf("log of %s:\n%s", d.name, out)
	}
}

// A daemon has a disk and a way to the registry of its own.
type daemon struct {
	w           *world
	name        string
	snapshotter string
	root        string // a filesystem of diskSize
	tmp, log    string
	gate        *gate
	address     string
	debug       string // a socket
	client      *client.Client

	cmd   *exec.Cmd
	ended chan error
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
		w: w, name: snapshotter, snapshotter: snapshotter,
		root: filepath.Join(dir, "root"), tmp: filepath.Join(dir, "tmp"), log: filepath.Join(dir, "log"),
		address: "unix://" + filepath.Join(dir, "sock"), debug: filepath.Join(dir, "debug"),
	}
	for _, dir := range []string{d.root, d.tmp} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
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
	if d.gate, err = newGate(w.opt.registry, login); err != nil {
		return nil, err
	}
	if d.client, err = client.New(context.Background(), d.address); err != nil {
		return nil, err
	}
	return d, d.start()
}

func (d *daemon) command(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.w.opt.daemon,
		"--config", filepath.Join(filepath.Dir(d.root), "toml"), "--root", d.root,
		"--addr", d.address, "--debugaddr", "unix://"+d.debug,
		"--containerd-worker=false", "--oci-worker-net=host", "--oci-worker-snapshotter", d.snapshotter)
	cmd.Env = append(os.Environ(), "TMPDIR="+d.tmp)
	return cmd
}

func (d *daemon) start() error {
	d.cmd = d.command(context.Background())
	out, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	d.cmd.Stdout, d.cmd.Stderr = out, out
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.ended = make(chan error, 1)
	go func() { d.ended <- d.cmd.Wait() }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		if _, err = d.client.ListWorkers(ctx); err == nil {
			return nil
		}
		select {
		case err := <-d.ended:
			d.cmd = nil
			return fmt.Errorf("%s did not start: %w", d.name, err)
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", d.name, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop returns an error if the daemon has to be killed.
func (d *daemon) stop() error {
	if d.cmd == nil {
		return nil
	}
	d.signal(syscall.SIGTERM)
	select {
	case err := <-d.ended:
		d.cmd = nil
		return err
	case <-time.After(patience):
		d.kill()
		return fmt.Errorf("%s did not end when asked to, and was killed", d.name)
	}
}

func (d *daemon) signal(s syscall.Signal) { _ = d.cmd.Process.Signal(s) }

func (d *daemon) kill() {
	d.signal(syscall.SIGKILL)
	<-d.ended
	d.cmd = nil
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
