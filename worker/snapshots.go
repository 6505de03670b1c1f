package worker

import (
	"fmt"
	"os"
	"strings"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/dialer"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	fuseoverlayfs "github.com/containerd/fuse-overlayfs-snapshotter/v2"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/worker/runc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// newSnapshots chooses the OCI worker's snapshotter. If that is the lazy one, it
// is returned as well: it has layers once it is open.
func newSnapshots(cfg config.OCIConfig, host Host) (runc.SnapshotterFactory, *stargz, error) {
	if cfg.ProxySnapshotterPath != "" {
		factory, err := proxySnapshots(cfg.Snapshotter, cfg.ProxySnapshotterPath)
		return factory, nil, err
	}
	name := cfg.Snapshotter
	if name == "auto" {
		name = autoSnapshotter(host.Root)
		bklog.L.Infof("auto snapshotter: using %s", name)
	}
	factory := runc.SnapshotterFactory{Name: name}
	switch name {
	case "native":
		factory.New = native.NewSnapshotter
	case "overlayfs": // containerd's plugin has this name, its package the other
		factory.New = func(root string) (snapshots.Snapshotter, error) {
			return overlay.NewSnapshotter(root, overlay.AsynchronousRemove)
		}
	case "fuse-overlayfs":
		factory.New = func(root string) (snapshots.Snapshotter, error) {
			return fuseoverlayfs.NewSnapshotter(root)
		}
	case "stargz":
		stargz, err := newStargz(cfg, host)
		if err != nil {
			return factory, nil, err
		}
		factory.New = stargz.open
		return factory, stargz, nil
	default:
		return factory, nil, fmt.Errorf("worker.oci.snapshotter (--oci-worker-snapshotter) %q is unknown: want auto, overlayfs, native, fuse-overlayfs or stargz, or the path of a proxy snapshotter's socket in worker.oci.proxySnapshotterPath", name)
	}
	return factory, nil, nil
}

// autoSnapshotter returns the best snapshotter that works on the filesystem of root.
func autoSnapshotter(root string) string {
	for _, candidate := range []struct {
		name      string
		supported func(root string) error
	}{
		{"overlayfs", overlayutils.Supported},
		{"fuse-overlayfs", fuseoverlayfs.Supported},
	} {
		err := candidate.supported(root)
		if err == nil {
			return candidate.name
		}
		bklog.L.Debugf("auto snapshotter: %s is not available for %s: %v", candidate.name, root, err)
	}
	return "native"
}

// proxySnapshots uses a snapshotter that another process serves on a socket.
func proxySnapshots(name, path string) (runc.SnapshotterFactory, error) {
	factory := runc.SnapshotterFactory{Name: name}
	if _, err := os.Stat(path); os.IsNotExist(err) {
		if bare, ok := strings.CutPrefix(path, "unix://"); ok {
			return factory, fmt.Errorf("worker.oci.proxySnapshotterPath (--oci-worker-proxy-snapshotter-path) %q: want a path without scheme, %q", path, bare)
		}
		return factory, fmt.Errorf("worker.oci.proxySnapshotterPath (--oci-worker-proxy-snapshotter-path): %w", err)
	}
	factory.New = func(string) (snapshots.Snapshotter, error) {
		conn, err := dialSnapshotter(path)
		if err != nil {
			return nil, fmt.Errorf("proxy snapshotter %q: %w", path, err)
		}
		return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), name), nil
	}
	return factory, nil
}

func dialSnapshotter(path string) (*grpc.ClientConn, error) {
	patience := backoff.DefaultConfig
	patience.MaxDelay = 3 * time.Second
	return grpc.NewClient(dialer.DialAddress(path),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: patience}),
		grpc.WithContextDialer(dialer.ContextDialer),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize),
		),
	)
}
