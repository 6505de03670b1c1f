package lazyfs

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

const hugeFile = hugeSize + 4711

// counting counts the reads of a layer.
func counting(layer *fake) *atomic.Int32 {
	var reads atomic.Int32
	layer.before = func(context.Context, store.Node, int64) error {
		reads.Add(1)
		return nil
	}
	return &reads
}

// TestPassthrough reads a large file that is complete without asking the layer,
// where the kernel can do that, and after it was open while it was not complete.
func TestPassthrough(t *testing.T) {
	layer := layerOf(large("huge", hugeFile), file("small", "content"))
	reads := counting(layer)
	dir := mounted(t, layer, Options{})
	f, err := os.Open(filepath.Join(dir, "huge"))
	require.NoError(t, err)
	checkRead(t, f, hugeFile, 1<<20, 100)
	require.NotZero(t, reads.Load())

	layer.complete(t, "huge")
	for range 10 {
		again, err := os.Open(filepath.Join(dir, "huge"))
		require.NoError(t, err, "while it is open through the page cache")
		checkRead(t, again, hugeFile, 2<<20, 100)
		require.NoError(t, again.Close())
	}
	require.NoError(t, f.Close())

	if !hasPassthrough() {
		t.Skip("the kernel has no passthrough")
	}
	reads.Store(0)
	require.Eventually(t, func() bool { // it hears of closed files somewhat later
		f, err = os.Open(filepath.Join(dir, "huge"))
		require.NoError(t, err)
		reads.Store(0)
		checkRead(t, f, hugeFile, 40<<20, 100_000)
		if reads.Load() == 0 {
			return true
		}
		require.NoError(t, f.Close())
		return false
	}, soon, 10*time.Millisecond)
	defer f.Close()
	for _, off := range []int64{0, 4095, hugeFile - 100, hugeFile} {
		checkRead(t, f, hugeFile, off, 1<<20)
	}
	mapped := mapFile(t, f, hugeFile)
	defer unix.Munmap(mapped)
	require.Equal(t, byte(0x45^0x23^0x01), mapped[0x12345])
	require.Zero(t, reads.Load())
	require.Equal(t, "content", read(t, dir, "small"))
}

// hasPassthrough says whether Linux is 6.9 or newer.
func hasPassthrough() bool {
	var u unix.Utsname
	unix.Uname(&u)
	return unix.ByteSliceToString(u.Release[:]) >= "6.9" || len(unix.ByteSliceToString(u.Release[:])) > 3 && u.Release[3] != '.'
}

func TestNoPassthrough(t *testing.T) {
	layer := layerOf(large("huge", hugeFile))
	layer.complete(t, "huge")
	reads := counting(layer)
	dir := mounted(t, layer, Options{NoPassthrough: true})
	f, err := os.Open(filepath.Join(dir, "huge"))
	require.NoError(t, err)
	defer f.Close()
	checkRead(t, f, hugeFile, 1<<20, 1<<20)
	require.NotZero(t, reads.Load())
}

const refusedDir = "LAZYFS_REFUSED_DIR"

// TestPassthroughRefused has a user namespace mount the layer, whose kernel offers
// passthrough and refuses it once a file is opened.
func TestPassthroughRefused(t *testing.T) {
	needMounts(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestRefused$", "-test.v")
	cmd.Env = append(os.Environ(), refusedDir+"="+t.TempDir())
	root := []syscall.SysProcIDMap{{Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: root, GidMappings: root}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: TestRefused")
}

func TestRefused(t *testing.T) {
	dir := os.Getenv(refusedDir)
	if dir == "" {
		t.Skip("is run by TestPassthroughRefused")
	}
	layer := layerOf(large("huge", hugeFile))
	layer.complete(t, "huge")
	reads := counting(layer)
	server, err := Mount(dir, layer, Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, server.Unmount()) }()
	for range 2 {
		f, err := os.Open(filepath.Join(dir, "huge"))
		require.NoError(t, err)
		checkRead(t, f, hugeFile, 1<<20, 1<<20)
		require.NoError(t, f.Close())
	}
	require.NotZero(t, reads.Load())
	opens := &server.conn.files.opens
	opens.mu.Lock()
	defer opens.mu.Unlock()
	require.Equal(t, hasPassthrough(), opens.refused)
}

// TestPassthroughOnOverlay reads through the overlay that a build has above.
func TestPassthroughOnOverlay(t *testing.T) {
	if !hasPassthrough() {
		t.Skip("the kernel has no passthrough")
	}
	layer := layerOf(large("huge", hugeFile))
	layer.complete(t, "huge")
	reads := counting(layer)
	dir := overlaid(t, "", mounted(t, layer, Options{}))
	f, err := os.Open(filepath.Join(dir, "huge"))
	require.NoError(t, err)
	defer f.Close()
	checkRead(t, f, hugeFile, 1<<20, 1<<20)
	require.Zero(t, reads.Load())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "huge"), []byte("new"), 0o600))
	require.Equal(t, "new", read(t, dir, "huge"))
}
