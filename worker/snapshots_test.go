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
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/resolver"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
)

func TestSnapshotterNames(t *testing.T) {
	for _, name := range []string{"native", "overlayfs", "fuse-overlayfs", "stargz"} {
		factory, err := newSnapshots(config.OCIConfig{Snapshotter: name}, Host{})
		require.NoError(t, err)
		require.Equal(t, name, factory.Name)
		require.NotNil(t, factory.New)
	}
	auto, err := newSnapshots(config.OCIConfig{Snapshotter: "auto"}, Host{Root: t.TempDir()})
	require.NoError(t, err)
	require.Contains(t, []string{"native", "overlayfs", "fuse-overlayfs"}, auto.Name)

	_, err = newSnapshots(config.OCIConfig{Snapshotter: "overlay"}, Host{})
	require.ErrorContains(t, err, `worker.oci.snapshotter (--oci-worker-snapshotter) "overlay" is unknown: want auto, overlayfs`)
}

func TestStargzConfig(t *testing.T) {
	s, err := newStargz(map[string]any{"no_background_fetch": true, "blob": map[string]any{"check_always": true}}, Host{})
	require.NoError(t, err)
	require.True(t, s.config.NoBackgroundFetch)
	require.True(t, s.config.CheckAlways)
	_, err = newStargz(map[string]any{"no_background_fetch": "perhaps"}, Host{})
	require.ErrorContains(t, err, "worker.oci.stargzSnapshotter")
}

func TestStargzSources(t *testing.T) {
	sessions, err := session.NewManager()
	require.NoError(t, err)
	s := &stargz{host: Host{Registries: resolver.NewRegistryConfig(nil), Sessions: sessions}}
	layer := digest.FromString("layer").String()
	sources, err := s.sources(map[string]string{
		refLabel + ".a":                "registry.example/one:latest",
		digestLabel + ".a":             layer,
		layersLabel + ".a":             layer,
		sessionLabel + ".0.a":          "session",
		refLabel + ".b":                "registry.example/two:latest",
		digestLabel + ".b":             layer,
		layersLabel + ".b":             layer,
		refLabel + ".no-digest":        "registry.example/three:latest",
		refLabel:                       "registry.example/no-id:latest",
		"containerd.io/something/else": "x",
	})
	require.NoError(t, err)
	require.Len(t, sources, 2)
	for i, name := range []string{"registry.example/one", "registry.example/two"} {
		require.Equal(t, name, sources[i].Name.Locator)
		require.Equal(t, layer, sources[i].Target.Digest.String())
		hosts, err := sources[i].Hosts(sources[i].Name)
		require.NoError(t, err)
		require.Equal(t, "registry.example", hosts[0].Host)
	}
}

func TestSessionIDs(t *testing.T) {
	require.Equal(t, []string{"x", "y"}, sessionIDs(map[string]string{
		sessionLabel + ".0.id":    "x",
		sessionLabel + ".1.id":    "y",
		sessionLabel + ".3.id":    "after a gap",
		sessionLabel + ".0.other": "z",
	}, "id"))
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

	factory, err := newSnapshots(config.OCIConfig{Snapshotter: "mine", ProxySnapshotterPath: path}, Host{})
	require.NoError(t, err)
	require.Equal(t, "mine", factory.Name)
	proxied, err := factory.New("unused")
	require.NoError(t, err)
	_, err = proxied.Prepare(t.Context(), "key", "")
	require.NoError(t, err)
	found, err := backend.Stat(t.Context(), "key")
	require.NoError(t, err)
	require.Equal(t, snapshots.KindActive, found.Kind)

	_, err = newSnapshots(config.OCIConfig{ProxySnapshotterPath: "unix:///does/not/exist"}, Host{})
	require.ErrorContains(t, err, `want a path without scheme, "/does/not/exist"`)
}
