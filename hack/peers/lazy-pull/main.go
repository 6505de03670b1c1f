// Command lazy-pull pulls an image into containerd through a remote
// snapshotter: it passes on the labels that tell the snapshotter where each
// layer lives, which `ctr image pull` does not. `ctr run --snapshotter` then
// runs the image.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/stargz-snapshotter/fs/source"
)

func main() {
	address := flag.String("address", os.Getenv("CONTAINERD_ADDRESS"), "containerd's unix socket, also $CONTAINERD_ADDRESS")
	snapshotter := flag.String("snapshotter", "stargz", "snapshotter to unpack into")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: lazy-pull [flags] image")
		os.Exit(2)
	}
	if err := pull(*address, *snapshotter, flag.Arg(0)); err != nil {
		log.Fatal(err)
	}
}

func pull(address, snapshotter, ref string) error {
	client, err := containerd.New(address)
	if err != nil {
		return err
	}
	defer client.Close()

	ctx := namespaces.WithNamespace(context.Background(), namespaces.Default)
	_, err = client.Pull(ctx, ref,
		containerd.WithResolver(loopbackResolver()),
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(snapshotter),
		// No prefetch size: the labels need one, the snapshotter ignores it.
		containerd.WithImageHandlerWrapper(source.AppendDefaultLabelsHandlerWrapper(ref, 0)),
	)
	return err
}

// loopbackResolver speaks plain HTTP to registries on this machine.
func loopbackResolver() remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost)),
	})
}
