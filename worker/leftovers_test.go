package worker

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestLeftovers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	tmp, ours, theirs := t.TempDir(), t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
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
	content := bind(filepath.Join(theirs, "disk"), filepath.Join(ours, "content"))

	require.NoError(t, unmountLeftovers(ours))
	for dir, left := range map[string]bool{rootfs: false, view: false, removed: false, another: true, content: true} {
		mounted, err := mountinfo.Mounted(dir)
		if !left && dir != rootfs {
			require.NoDirExists(t, dir)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, left, mounted, dir)
	}
}
