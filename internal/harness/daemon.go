package harness

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/moby/buildkit/client"
)

// A Daemon is a build daemon, ours or stock BuildKit's, with a root and a socket of
// its own. Start starts it, and starts it again when it has ended. The fields other
// than Process count at the next start.
type Daemon struct {
	*Process // nil before the first start
	Tools    Tools
	Binary   string
	Dir      string              // for the log, the socket, and temporary files
	Root     string              // Dir/root if it is empty
	Flags    []string            // besides those for the root and the socket
	Env      []string            // besides that of this process
	Attr     syscall.SysProcAttr // of the process
}

// Start waits for the daemon's first answer.
func (d *Daemon) Start(ctx context.Context) error {
	if d.Process != nil {
		select {
		case <-d.Done():
		default:
			return fmt.Errorf("%s in %s runs already", d.name, d.Dir)
		}
	}
	// What a killed daemon leaves mounted lies below its directory too.
	if err := os.MkdirAll(d.Temp(), 0o700); err != nil {
		return err
	}
	p, err := start(ctx, d.Dir, filepath.Base(d.Binary), d.Command(context.WithoutCancel(ctx)), d.answer)
	if err == nil {
		d.Process = p
	}
	return err
}

// Kill kills the process that runs now, if there is one, so that d.Kill as a function
// does, too.
func (d *Daemon) Kill() {
	if d.Process != nil {
		d.Process.Kill()
	}
}

// Stop stops the process that runs now, if there is one.
func (d *Daemon) Stop() error {
	if d.Process == nil {
		return nil
	}
	return d.Process.Stop()
}

// Command is what Start runs.
func (d *Daemon) Command(ctx context.Context) *exec.Cmd {
	root := d.Root
	if root == "" {
		root = filepath.Join(d.Dir, "root")
	}
	cmd := exec.CommandContext(ctx, d.Binary, append([]string{
		"--root", root,
		"--addr", d.Address(),
		"--containerd-worker=false",
		"--oci-worker-net=host",
	}, d.Flags...)...)
	cmd.Env = append(append(os.Environ(), "TMPDIR="+d.Temp()), d.Env...)
	attr := d.Attr
	cmd.SysProcAttr = &attr
	return cmd
}

// Temp is where the daemon has its temporary files.
func (d *Daemon) Temp() string { return filepath.Join(d.Dir, "tmp") }

func (d *Daemon) socket() string { return filepath.Join(d.Dir, "buildkitd.sock") }

// Address is the daemon's, for clients.
func (d *Daemon) Address() string { return "unix://" + d.socket() }

// answer waits until the daemon answers a client. gRPC waits a second between its
// attempts to connect.
func (d *Daemon) answer(ctx context.Context) error {
	c, err := client.New(ctx, d.Address(), client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		for {
			conn, err := new(net.Dialer).DialContext(ctx, "unix", d.socket())
			if err == nil || ctx.Err() != nil {
				return conn, err
			}
			time.Sleep(time.Millisecond)
		}
	}))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.ListWorkers(ctx)
	return err
}

// CreateBuilder makes the daemon the builder of the clients that Client returns.
func (d *Daemon) CreateBuilder(ctx context.Context) error {
	out, err := d.Client(ctx, "buildx", "create", "--name", "test", "--driver", "remote", d.Address()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("buildx create: %w\n%s", err, out)
	}
	return nil
}

// Client is buildx, buildctl or any other command that talks to the daemon.
func (d *Daemon) Client(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.Tools.Path(name), args...)
	cmd.Env = append(os.Environ(),
		"BUILDX_CONFIG="+filepath.Join(d.Dir, "buildx"),
		"BUILDX_BUILDER=test",
		"BUILDKIT_HOST="+d.Address(),
		"BUILDX_NO_DEFAULT_ATTESTATIONS=1")
	return cmd
}
