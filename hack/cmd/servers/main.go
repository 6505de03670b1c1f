// Command servers starts a server of package harness for a script, prints its
// address when it is ready, and stops it when it gets a signal:
//
//	servers [flags] registry
//	servers [flags] daemon BINARY  with a buildx builder named test, in DIR/buildx
//	servers [flags] node           containerd, and the stock stargz-snapshotter
//	servers [flags] line ADDRESS   a slow line before a registry
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

func main() {
	log.SetFlags(0)
	bin := flag.String("bin", "", "directory with what hack/tools built")
	dir := flag.String("dir", ".", "directory for the server's files, which is made")
	flag.Parse()
	if err := serve(harness.Tools(*bin), *dir, flag.Arg(0), flag.Arg(1)); err != nil {
		log.Fatal(err)
	}
}

func serve(tools harness.Tools, dir, server, argument string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	address, end, err := start(ctx, tools, dir, server, argument)
	if err != nil {
		return err
	}
	fmt.Println(address)
	<-ctx.Done()
	return end()
}

func start(ctx context.Context, tools harness.Tools, dir, server, argument string) (address string, end func() error, err error) {
	switch server {
	case "registry":
		r, err := harness.StartRegistry(ctx, tools, dir)
		if err != nil {
			return "", nil, err
		}
		return r.Address, r.Stop, nil
	case "daemon":
		d := &harness.Daemon{Tools: tools, Binary: argument, Dir: dir}
		if err := d.Start(ctx); err != nil {
			return "", nil, err
		}
		if err := d.CreateBuilder(ctx); err != nil {
			return "", nil, errors.Join(err, d.Stop())
		}
		return d.Address(), d.Stop, nil
	case "node":
		n, err := harness.StartNode(ctx, tools, dir, "-prefetch")
		if err != nil {
			return "", nil, err
		}
		return n.Address, n.Stop, nil
	case "line":
		return startLine(filepath.Join(dir, "requests"), argument)
	}
	return "", nil, fmt.Errorf("there is no server %q", server)
}

// startLine starts what a node in another data centre has before a registry, and
// writes a line of JSON for each request to a file.
func startLine(file, to string) (address string, end func() error, err error) {
	f, err := os.Create(file)
	if err != nil {
		return "", nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	var mu sync.Mutex
	requests := json.NewEncoder(f)
	line := shaped.Serve(l, to, shaped.Link{Delay: 20 * time.Millisecond, BytesPerSecond: 400e6 / 8}, func(r shaped.Request) {
		mu.Lock()
		defer mu.Unlock()
		if err := requests.Encode(r); err != nil {
			log.Print(err)
		}
	})
	return line.Addr(), line.Close, nil
}
