// Command stargz-snapshotter serves the stock stargz snapshotter to containerd
// as a proxy plugin over a unix socket.
//
// Upstream's own command lives in a module that cannot be built with the go
// command alone (it has replace directives), so this one calls the same
// libraries. It exists for the integration tests and the demo: what it mounts
// shows that an image is read lazily by somebody else's code.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/stargz-snapshotter/fs/config"
	"github.com/containerd/stargz-snapshotter/service"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

func main() {
	address := flag.String("address", "", "unix socket to serve on")
	root := flag.String("root", "", "directory of the snapshots")
	prefetch := flag.Bool("prefetch", false, "prefetch prioritized files, and the rest in the background, as upstream does by default")
	flag.Parse()
	if *address == "" || *root == "" {
		flag.Usage()
		os.Exit(2)
	}
	how := onlyOnDemand()
	if *prefetch {
		how = defaults()
	}
	if err := serve(*address, *root, how); err != nil {
		log.Fatal(err)
	}
}

func serve(address, root string, how *service.Config) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()

	sn, err := service.NewStargzSnapshotterService(ctx, root, how)
	if err != nil {
		return err
	}
	// Close unmounts the layers.
	defer sn.Close()

	l, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	srv := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(sn))
	context.AfterFunc(ctx, srv.Stop)
	return srv.Serve(l)
}

// onlyOnDemand turns off prefetching and the background fetch: what comes over
// the wire is then what was read, so laziness can be counted.
func onlyOnDemand() *service.Config {
	return &service.Config{Config: config.Config{
		NoPrefetch:        true,
		NoBackgroundFetch: true,
	}}
}

// defaults are what upstream's own command takes when its configuration is
// empty: the library's zero values, but for those that only its TOML parser
// knows.
func defaults() *service.Config {
	return &service.Config{Config: config.Config{
		DirectoryCacheConfig: config.DirectoryCacheConfig{Direct: true},
	}}
}
