package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// A node has the stock stargz-snapshotter as upstream configures it, and a
// directory of its own. It starts with nothing.
type node struct {
	*harness.Node
	dir string
}

func startNode(ctx context.Context, c *config) (*node, error) {
	dir, err := os.MkdirTemp(c.work, "node")
	if err != nil {
		return nil, err
	}
	n, err := harness.StartNode(ctx, c.tools, dir, "-prefetch")
	return &node{n, dir}, err
}

func (n *node) run(ctx context.Context, tool string, args ...string) error {
	if out, err := n.Client(ctx, tool, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", tool, strings.Join(args, " "), err, out)
	}
	return nil
}

// stop ends the node and removes all that it had.
func (n *node) stop() error { return errors.Join(n.Stop(), harness.RemoveAll(n.dir)) }

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
	defer func() { err = errors.Join(err, n.stop()) }()
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
	cmd := n.Client(ctx, "ctr", "run", "--rm", "--snapshotter", "stargz", image, id)
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
