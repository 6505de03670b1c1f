package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
)

// A node is containerd with the stock stargz-snapshotter as upstream configures
// it. It starts with nothing.
type node struct {
	c       *config
	dir     string
	address string
	servers []*server // in the order of their start
}

func startNode(ctx context.Context, c *config) (n *node, err error) {
	n = &node{c: c}
	if n.dir, err = os.MkdirTemp(c.work, "node"); err != nil {
		return nil, err
	}
	n.address = filepath.Join(n.dir, "containerd.sock")
	if err := n.serve(ctx); err != nil {
		return nil, errors.Join(err, n.stop(ctx))
	}
	return n, nil
}

func (n *node) serve(ctx context.Context) error {
	socket, file := filepath.Join(n.dir, "stargz.sock"), filepath.Join(n.dir, "containerd.toml")
	err := os.WriteFile(file, fmt.Appendf(nil, `
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
`, filepath.Join(n.dir, "containerd"), filepath.Join(n.dir, "state"), n.address, n.address+".ttrpc", socket), 0o600)
	if err != nil {
		return err
	}
	stargz := exec.Command(n.c.tool("stargz-snapshotter"), "-prefetch", "-root", filepath.Join(n.dir, "stargz"), "-address", socket)
	if err := n.add(startServer(ctx, stargz, func() bool { _, err := os.Stat(socket); return err == nil })); err != nil {
		return err
	}
	containerd := exec.Command(n.c.tool("containerd"), "--config", file)
	// The shim is found on the path.
	containerd.Env = append(os.Environ(), "PATH="+n.c.bin+":"+os.Getenv("PATH"))
	return n.add(startServer(ctx, containerd, func() bool { return n.run(ctx, "ctr", "version") == nil }))
}

func (n *node) add(s *server, err error) error {
	if err == nil {
		n.servers = append(n.servers, s)
	}
	return err
}

// command is a tool that talks to containerd.
func (n *node) command(ctx context.Context, tool string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, n.c.tool(tool), args...)
	cmd.Env = append(os.Environ(), "CONTAINERD_ADDRESS="+n.address)
	return cmd
}

func (n *node) run(ctx context.Context, tool string, args ...string) error {
	if out, err := n.command(ctx, tool, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", tool, strings.Join(args, " "), err, out)
	}
	return nil
}

// stop ends the node and removes all that it had.
func (n *node) stop(ctx context.Context) error {
	var errs []error
	for _, s := range slices.Backward(n.servers) {
		errs = append(errs, s.stop())
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.dir))
	errs = append(errs, err)
	for _, m := range slices.Backward(mounts) {
		errs = append(errs, syscall.Unmount(m.Mountpoint, syscall.MNT_DETACH))
	}
	return errors.Join(append(errs, os.RemoveAll(n.dir))...)
}

// A start is what one cold start took until the image was ready.
type start struct {
	took     time.Duration
	requests []shaped.Request // for blobs
}

func (s start) bytes() int64 { return shaped.Bytes(s.requests) }

// startCold pulls an image over the line and runs it, on a node that has
// nothing yet.
func startCold(ctx context.Context, c *config, line *shaped.Proxy, name, ready string) (s start, err error) {
	syscall.Sync() // what the last node left to be written
	n, err := startNode(ctx, c)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, n.stop(ctx)) }()
	line.Reset()
	image, begin := line.Addr()+"/"+name, time.Now()
	if err := n.run(ctx, "lazy-pull", image); err != nil {
		return s, err
	}
	now := func() { s.took, s.requests = time.Since(begin), shaped.Blobs(line.Requests()) }
	return s, n.container(ctx, image, ready, now)
}

// container runs an image until it is ready, and says when that is.
func (n *node) container(ctx context.Context, image, ready string, now func()) error {
	const id = "subject"
	cmd := n.command(ctx, "ctr", "run", "--rm", "--snapshotter", "stargz", image, id)
	if ready == "" {
		out, err := cmd.CombinedOutput()
		now()
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", image, err, out)
		}
		return nil
	}
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- errors.Join(cmd.Wait(), w.Close()) }()
	found, output := readUntil(r, ready)
	now()
	go io.Copy(io.Discard, r)
	if !found {
		return fmt.Errorf("%s ended before it was ready: %w\n%s", image, <-ended, output)
	}
	err := n.run(ctx, "ctr", "tasks", "kill", "--signal", "SIGKILL", id)
	<-ended // with the status of what was killed
	return err
}

// readUntil reads lines until one contains a text.
func readUntil(r io.Reader, text string) (found bool, output string) {
	var b strings.Builder
	for lines := bufio.NewScanner(r); lines.Scan(); {
		b.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), text) {
			return true, b.String()
		}
	}
	return false, b.String()
}
