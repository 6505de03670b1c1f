package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
)

// An idler is a daemon that has nothing to do, with what each start took.
type idler struct {
	name, binary string
	flags        []string
	starts       []idleStart
}

type idleStart struct {
	took   time.Duration // from the start of the process to its first answer
	memory int64         // bytes, resident, some seconds later
}

// idle starts each daemon on a root of its own, in turns: a first time on an empty
// root, which does not count, and after that on what it left.
func idle(ctx context.Context, c *config) ([]section, error) {
	idlers := []*idler{
		{name: "stock", binary: "buildkitd"},
		{name: ourName, binary: "buildkitd-esgz"},
		{name: ourName + ", lazy", binary: "buildkitd-esgz", flags: []string{"--oci-worker-snapshotter=stargz"}},
	}
	for round := range c.runs + 1 {
		for at := range idlers {
			// Who comes first changes from round to round.
			i := idlers[(round+at)%len(idlers)]
			s, err := i.start(ctx, c)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", i.name, err)
			}
			if round == 0 {
				continue
			}
			log.Printf("round %d of %d, %s: %.3f s, %.1f MiB", round, c.runs, i.name, s.took.Seconds(), float64(s.memory)/(1<<20))
			i.starts = append(i.starts, s)
		}
	}
	s := section{
		Title: "A daemon without builds",
		Table: table{Columns: []string{"daemon", "start", "ratio", "memory", "ratio"}},
		Notes: []string{"Start is until the first answer to a client, memory what is resident three seconds later. Medians."},
	}
	took := func(s idleStart) time.Duration { return s.took }
	memory := func(s idleStart) int64 { return s.memory }
	for _, i := range idlers {
		s.Table.add(i.name,
			fmt.Sprintf("%.3f s", median(i.starts, took).Seconds()),
			fmt.Sprintf("%.2f", ratio(median(i.starts, took), median(idlers[0].starts, took))),
			fmt.Sprintf("%.1f MiB", float64(median(i.starts, memory))/(1<<20)),
			fmt.Sprintf("%.2f", ratio(median(i.starts, memory), median(idlers[0].starts, memory))))
	}
	return []section{s}, nil
}

func (i *idler) start(ctx context.Context, c *config) (s idleStart, err error) {
	dir := filepath.Join(c.work, strings.ReplaceAll(i.name, ", ", "-"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return s, err
	}
	socket := filepath.Join(dir, "buildkitd.sock")
	cmd := exec.Command(c.tool(i.binary), append(i.flags, "--root", filepath.Join(dir, "root"), "--addr", "unix://"+socket,
		"--containerd-worker=false", "--oci-worker-net=host")...)
	start := time.Now()
	// Without the intervals in which startServer asks.
	srv, err := startServer(ctx, cmd, func() bool {
		if err = firstAnswer(ctx, socket); err == nil {
			s.took = time.Since(start)
		}
		return true
	})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	time.Sleep(3 * time.Second)
	s.memory, err = resident(cmd.Process.Pid)
	return s, err
}

// firstAnswer waits for the daemon to answer.
func firstAnswer(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cl, err := client.New(ctx, "unix://"+socket, client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		for {
			conn, err := net.Dial("unix", socket)
			if err == nil || ctx.Err() != nil {
				return conn, err
			}
			time.Sleep(time.Millisecond)
		}
	}))
	if err != nil {
		return err
	}
	defer cl.Close()
	_, err = cl.ListWorkers(ctx)
	return err
}

// resident is a process's memory in bytes.
func resident(pid int) (int64, error) {
	name := filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup")
	raw, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "Rss:"); ok {
			var kib int64
			_, err := fmt.Sscanf(rest, "%d kB", &kib)
			return kib << 10, err
		}
	}
	return 0, errors.New(name + ": no Rss")
}
