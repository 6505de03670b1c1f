package worker

import (
	"net"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
)

func TestSnapshotterNames(t *testing.T) {
	for _, name := range []string{"native", "overlayfs", "fuse-overlayfs", "stargz"} {
		factory, _, err := newSnapshots(config.OCIConfig{Snapshotter: name}, Host{})
		require.NoError(t, err)
		require.Equal(t, name, factory.Name)
		require.NotNil(t, factory.New)
	}
	auto, _, err := newSnapshots(config.OCIConfig{Snapshotter: "auto"}, Host{Root: t.TempDir()})
	require.NoError(t, err)
	require.Contains(t, []string{"native", "overlayfs", "fuse-overlayfs"}, auto.Name)

	_, _, err = newSnapshots(config.OCIConfig{Snapshotter: "overlay"}, Host{})
	require.ErrorContains(t, err, `worker.oci.snapshotter (--oci-worker-snapshotter) "overlay" is unknown: want auto, overlayfs`)
}

func TestProxySnapshotter(t *testing.T) {
	backend, err := native.NewSnapshotter(t.TempDir())
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(backend))
	go server.Serve(l)
	t.Cleanup(server.Stop)

	factory, _, err := newSnapshots(config.OCIConfig{Snapshotter: "mine", ProxySnapshotterPath: path}, Host{})
	require.NoError(t, err)
	require.Equal(t, "mine", factory.Name)
	proxied, err := factory.New("unused")
	require.NoError(t, err)
	_, err = proxied.Prepare(t.Context(), "key", "")
	require.NoError(t, err)
	found, err := backend.Stat(t.Context(), "key")
	require.NoError(t, err)
	require.Equal(t, snapshots.KindActive, found.Kind)

	_, _, err = newSnapshots(config.OCIConfig{ProxySnapshotterPath: "unix:///does/not/exist"}, Host{})
	require.ErrorContains(t, err, `want a path without scheme, "/does/not/exist"`)
}
