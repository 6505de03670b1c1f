package worker

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

func TestLeftovers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	tmp, ours, theirs := t.TempDir(), t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Setenv("XDG_RUNTIME_DIR", "")
	bind := func(from, to string) string {
		require.NoError(t, os.MkdirAll(from, 0o755))
		require.NoError(t, os.MkdirAll(to, 0o755))
		require.NoError(t, unix.Mount(from, to, "", unix.MS_BIND, ""))
		t.Cleanup(func() { _ = unix.Unmount(to, unix.MNT_DETACH) })
		return to
	}
	rootfs := bind(filepath.Join(ours, "snapshots/1/fs"), filepath.Join(ours, "executor/id/rootfs"))
	view := bind(filepath.Join(ours, "snapshots/2/fs"), filepath.Join(tmp, "buildkit-mount1"))
	removed := bind(filepath.Join(ours, "snapshots/3/fs"), filepath.Join(tmp, "buildkit-mount2"))
	require.NoError(t, os.RemoveAll(filepath.Join(ours, "snapshots/3")))
	another := bind(filepath.Join(theirs, "snapshots/1/fs"), filepath.Join(tmp, "buildkit-mount3"))
	exported := bind(filepath.Join(ours, "snapshots/4/fs"), filepath.Join(tmp, "containerd-mount1"))
	content := bind(filepath.Join(theirs, "disk"), filepath.Join(ours, "content"))

	disk := t.TempDir() // a filesystem of its own
	require.NoError(t, unix.Mount("tmpfs", disk, "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	onDisk := bind(filepath.Join(disk, "worker/snapshots/1/fs"), filepath.Join(tmp, "buildkit-mount4"))
	beside := bind(filepath.Join(disk, "worker2/snapshots/1/fs"), filepath.Join(tmp, "buildkit-mount5"))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(filepath.Join(disk, "worker"), link))
	inExecutor := bind(filepath.Join(disk, "worker/snapshots/2/fs"), filepath.Join(disk, "worker/executor/id/rootfs"))

	require.NoError(t, unmountLeftovers(ours))
	require.DirExists(t, onDisk)
	require.NoError(t, unmountLeftovers(link))
	mounted, err := mountinfo.Mounted(inExecutor)
	require.NoError(t, err)
	require.False(t, mounted)
	for dir, left := range map[string]bool{rootfs: false, view: false, removed: false, exported: false, another: true, onDisk: false, beside: true, content: true} {
		mounted, err := mountinfo.Mounted(dir)
		if !left && dir != rootfs {
			require.NoDirExists(t, dir)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, left, mounted, dir)
	}
}

func TestOrphans(t *testing.T) {
	ctx := namespaces.WithNamespace(t.Context(), "buildkit")
	records, err := metadata.NewStore(filepath.Join(t.TempDir(), "records"))
	require.NoError(t, err)
	defer records.Close()
	known, _ := records.Get("known")
	require.NoError(t, known.Update(func(b *bolt.Bucket) error { return known.SetValue(b, "key", nil) }))
	db, err := bolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, nil)
	require.NoError(t, err)
	defer db.Close()
	manager := ctdmetadata.NewLeaseManager(ctdmetadata.NewDB(db, nil, nil))
	flat := leases.WithLabels(map[string]string{"containerd.io/gc.flat": "now"})
	for id, opts := range map[string][]leases.Opt{
		"known": {flat}, "known-variants": {flat}, "orphan": {flat}, "orphan-view": {flat}, "others": nil,
	} {
		_, err := manager.Create(ctx, append(opts, leases.WithID(id))...)
		require.NoError(t, err)
	}

	require.NoError(t, deleteOrphans(ctx, manager, records))
	left, err := manager.List(ctx)
	require.NoError(t, err)
	var ids []string
	for _, lease := range left {
		ids = append(ids, lease.ID)
	}
	require.ElementsMatch(t, []string{"known", "known-variants", "others"}, ids)
}

// What only the disk knows of goes when the daemon starts, and nothing else.
func TestCollectLeftovers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("snapshots need root")
	}
	ctx := namespaces.WithNamespace(t.Context(), "buildkit")
	dir := filepath.Join(t.TempDir(), "snapshots")
	open := func() snapshots.Snapshotter {
		s, err := withoutLeftovers(config.OCIConfig{}, func(root string) (snapshots.Snapshotter, error) {
			return overlay.NewSnapshotter(root, overlay.AsynchronousRemove)
		})(dir)
		require.NoError(t, err)
		return s
	}
	s := open()
	for _, key := range []string{"kept", "removed"} {
		_, err := s.Prepare(ctx, key, "")
		require.NoError(t, err)
	}
	require.NoError(t, s.Commit(ctx, "committed", "kept"))
	_, err := s.Prepare(ctx, "active", "committed")
	require.NoError(t, err)
	require.NoError(t, s.Remove(ctx, "removed")) // the directory stays until Cleanup
	require.NoError(t, s.Close())
	snapshotDirs := filepath.Join(dir, "snapshots")
	require.NoError(t, os.Mkdir(filepath.Join(snapshotDirs, "new-1"), 0o700)) // for one that was never made
	require.Len(t, names(t, snapshotDirs), 4)
	ingests := filepath.Join(filepath.Dir(dir), "content", "ingest")
	require.NoError(t, os.MkdirAll(filepath.Join(ingests, "part"), 0o700)) // of a blob

	s = open()
	defer s.Close()
	require.Equal(t, []string{"1", "3"}, names(t, snapshotDirs))
	require.Empty(t, names(t, ingests))
	for _, key := range []string{"committed", "active"} {
		_, err := s.Stat(ctx, key)
		require.NoError(t, err)
	}
}

func names(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
