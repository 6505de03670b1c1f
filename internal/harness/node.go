package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A Node is containerd with its overlayfs snapshotter, which knows nothing of
// eStargz, and the stock stargz-snapshotter as its proxy plugin.
type Node struct {
	*Process    // containerd
	Address     string
	Snapshotter *Process
	tools       Tools
}

// StartNode starts both, with their files in a directory. The flags are the
// snapshotter's.
func StartNode(ctx context.Context, tools Tools, dir string, flags ...string) (*Node, error) {
	snapshotter, socket, err := StartSnapshotter(ctx, tools, dir, flags...)
	if err != nil {
		return nil, err
	}
	n := &Node{Address: filepath.Join(dir, "containerd.sock"), Snapshotter: snapshotter, tools: tools}
	if err := n.start(ctx, dir, socket); err != nil {
		return nil, errors.Join(err, snapshotter.Stop())
	}
	return n, nil
}

func (n *Node) start(ctx context.Context, dir, snapshotter string) (err error) {
	config := filepath.Join(dir, "containerd.toml")
	err = os.WriteFile(config, fmt.Appendf(nil, `
version = 3
root = %q
state = %q
[grpc]
  address = %q
[ttrpc]
  address = %q
[proxy_plugins.stargz]
  type = "snapshot"
  address = %q
`, filepath.Join(dir, "containerd"), filepath.Join(dir, "state"), n.Address, n.Address+".ttrpc", snapshotter), 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(n.tools.Path("containerd"), "--config", config)
	// The shim is found on the path.
	cmd.Env = append(os.Environ(), "PATH="+string(n.tools)+":"+os.Getenv("PATH"))
	n.Process, err = Start(ctx, dir, "containerd", cmd, func() bool { return n.Client(ctx, "ctr", "version").Run() == nil })
	return err
}

// Client is ctr, or another command that talks to containerd.
func (n *Node) Client(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, n.tools.Path(name), args...)
	cmd.Env = append(os.Environ(), "CONTAINERD_ADDRESS="+n.Address)
	return cmd
}

// Stop ends the containers, containerd and the snapshotter.
func (n *Node) Stop() error {
	return errors.Join(n.endContainers(), n.Process.Stop(), n.Snapshotter.Stop())
}

// endContainers: a container outlives the command that runs it, and containerd.
func (n *Node) endContainers() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := n.Client(ctx, "ctr", "tasks", "ls", "-q").Output()
	if err != nil {
		return fmt.Errorf("list the containers: %w", err)
	}
	for id := range strings.FieldsSeq(string(out)) {
		if out, err := n.Client(ctx, "ctr", "tasks", "rm", "--force", id).CombinedOutput(); err != nil {
			return fmt.Errorf("end container %s: %w\n%s", id, err, out)
		}
	}
	return nil
}

// StartSnapshotter starts the stock stargz-snapshotter alone.
func StartSnapshotter(ctx context.Context, tools Tools, dir string, flags ...string) (p *Process, socket string, err error) {
	socket = filepath.Join(dir, "stargz.sock")
	cmd := exec.Command(tools.Path("stargz-snapshotter"), append(flags, "-root", filepath.Join(dir, "stargz"), "-address", socket)...)
	p, err = Start(ctx, dir, "stargz-snapshotter", cmd, func() bool {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return false // there may be one of an earlier snapshotter
		}
		_ = conn.Close()
		return true
	})
	return p, socket, err
}
