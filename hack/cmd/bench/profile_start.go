package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// startCold pulls an image over the line and runs it, on a node that has nothing
// yet. It returns how long it took until the image was ready, and the requests for
// blobs until then.
func (b *bench) startCold(ctx context.Context, line *shaped.Proxy, name, ready string) (took time.Duration, requests []shaped.Request, err error) {
	err = b.withNode(ctx, func(n *harness.Node) error {
		line.Reset()
		image, begin := line.Addr()+"/"+name, time.Now()
		if err := run(n.Client(ctx, "lazy-pull", image)); err != nil {
			return err
		}
		now := func() { took, requests = time.Since(begin), shaped.Blobs(line.Requests()) }
		return runUntil(ctx, n, image, ready, now)
	})
	return took, requests, err
}

func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

// runUntil runs an image until it is ready, and says when that is.
func runUntil(ctx context.Context, n *harness.Node, image, ready string, now func()) error {
	const id = "subject"
	cmd := n.Client(ctx, "ctr", "run", "--rm", "--snapshotter", "stargz", image, id)
	if ready == "" {
		defer now()
		return run(cmd)
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
	err := run(n.Client(ctx, "ctr", "tasks", "kill", "--signal", "SIGKILL", id))
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
