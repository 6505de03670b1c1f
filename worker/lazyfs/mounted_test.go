package lazyfs

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// needMounts skips a test where mounts are not allowed.
func needMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts, which takes root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip(err)
	}
}

// mounted mounts a layer for the time of the test. No goroutine outlives it.
func mounted(t *testing.T, layer Layer, o Options) string { return serving(t, layer, o).dir }

// serving is mounted, and returns the server.
func serving(t *testing.T, layer Layer, o Options) *Server {
	needMounts(t)
	before := runtime.NumGoroutine()
	dir := t.TempDir()
	server, err := Mount(dir, layer, o)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, server.Unmount())
		for end := time.Now().Add(soon); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
			require.True(t, time.Now().Before(end), "goroutines are left")
		}
	})
	return server
}

// overlaid mounts an overlay above directories, of which the first is topmost.
func overlaid(t *testing.T, options string, lower ...string) string {
	needMounts(t)
	// An overlay's own directories cannot stand on one.
	work, err := os.MkdirTemp(os.Getenv("TMPDIR"), "overlay")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(work)) })
	for _, name := range []string{"upper", "work", "merged"} {
		require.NoError(t, os.Mkdir(filepath.Join(work, name), 0o755))
	}
	o := "upperdir=" + work + "/upper,workdir=" + work + "/work,lowerdir="
	for i, dir := range lower {
		if i > 0 {
			o += ":"
		}
		o += dir
	}
	merged := filepath.Join(work, "merged")
	require.NoError(t, unix.Mount("overlay", merged, "overlay", 0, o+options))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(merged, 0)) })
	return merged
}

// forget has the kernel forget what it need not remember.
func forget(t *testing.T) {
	require.NoError(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
}

func read(t *testing.T, parts ...string) string {
	p, err := os.ReadFile(filepath.Join(parts...))
	require.NoError(t, err)
	return string(p)
}

func names(t *testing.T, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
