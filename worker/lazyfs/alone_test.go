package lazyfs

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazyfs/watchdog"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

const aloneDir = "LAZYFS_ALONE_DIR"

// TestOneProcessor has a process with one processor read its own mount, where
// who reads could keep the processor from who answers, and then kills it, so
// that a dead mount is left to clear.
func TestOneProcessor(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestAlone$")
	cmd.Env = append(os.Environ(), aloneDir+"="+dir, "GOMAXPROCS=1")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	said := make(chan string)
	go func() {
		defer close(said)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			said <- lines.Text()
		}
	}()
	select {
	case line := <-said:
		require.Equal(t, "all read", line)
	case <-time.After(soon):
		require.FailNow(t, "it is stuck")
	}
	require.NoError(t, cmd.Process.Kill())
	for range said {
	}
	require.Error(t, cmd.Wait())

	require.ErrorIs(t, unix.Statfs(dir, new(unix.Statfs_t)), unix.ENOTCONN)
	require.NoError(t, Clear(dir))
	require.Empty(t, names(t, dir))
}

func TestAlone(t *testing.T) {
	dir := os.Getenv(aloneDir)
	if dir == "" {
		t.Skip("is run by TestOneProcessor")
	}
	var parts []part
	for i := range 500 {
		parts = append(parts, file(fmt.Sprint(i), "content"))
	}
	_, err := Mount(dir, layerOf(append(parts, large("large", 10<<20))...), Options{})
	require.NoError(t, err)
	for i := range 500 {
		require.Equal(t, "content", read(t, dir, fmt.Sprint(i)))
	}
	require.Len(t, read(t, dir, "large"), 10<<20)
	require.Len(t, names(t, dir), 501)
	fmt.Println("all read")
	select {}
}

const stuckDir = "LAZYFS_STUCK_DIR"

// TestKilledWhileAsking kills a process that waits for an answer of its own mount. The
// request has been received, so that only the end of the connection ends the wait.
func TestKilledWhileAsking(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestStuck$")
	cmd.Env = append(os.Environ(), stuckDir+"="+dir)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "asked\n", line)
	require.NoError(t, cmd.Process.Kill())
	ended := make(chan error)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		require.Error(t, err)
		require.NoError(t, Clear(filepath.Join(dir, "mount")))
	case <-time.After(soon):
		assert.Fail(t, "the process that was killed has not ended")
		require.NoError(t, unix.Unmount(filepath.Join(dir, "mount"), unix.MNT_FORCE|unix.MNT_DETACH))
		<-ended
	}
}

func TestStuck(t *testing.T) {
	dir := os.Getenv(stuckDir)
	if dir == "" {
		t.Skip("is run by TestKilledWhileAsking")
	}
	_, err := watchdog.Start(Type, dir, func(error) {})
	require.NoError(t, err)
	mount := filepath.Join(dir, "mount")
	require.NoError(t, os.Mkdir(mount, 0o755))
	_, err = Mount(mount, deaf{layerOf()}, Options{})
	require.NoError(t, err)
	_, err = os.Stat(filepath.Join(mount, "file"))
	require.NoError(t, err)
}

// deaf never answers what it has in its root.
type deaf struct{ *fake }

func (deaf) Lookup(store.Node, string) (store.Node, bool) {
	fmt.Println("asked")
	select {}
}

// TestClear leaves alone what is no dead mount.
func TestClear(t *testing.T) {
	dir := mounted(t, layerOf(file("file", "content")), Options{})
	require.NoError(t, Clear(dir))
	require.Equal(t, "content", read(t, dir, "file"))
	require.NoError(t, Clear(filepath.Join(t.TempDir(), "missing")))
	require.NoError(t, Clear(t.TempDir()))
}

// TestMountLost has the mount taken away from outside, and its connection aborted.
// It is noticed, unmounting is no error, and the layer can be mounted again.
func TestMountLost(t *testing.T) {
	needMounts(t)
	connections := t.TempDir()
	require.NoError(t, unix.Mount("fusectl", connections, "fusectl", 0, ""))
	defer unix.Unmount(connections, 0)
	for name, lose := range map[string]func(dir string) error{
		"unmounted": func(dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) },
		"aborted": func(dir string) error {
			device, err := deviceOf(dir)
			if err != nil {
				return err
			}
			return os.WriteFile(fmt.Sprintf("%s/%d/abort", connections, unix.Minor(device)), []byte("1"), 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			layer, dir := layerOf(file("file", "content")), t.TempDir()
			server, err := Mount(dir, layer, Options{})
			require.NoError(t, err)
			require.True(t, server.Mounted())
			require.NoError(t, lose(dir))
			require.Eventually(t, func() bool { return !server.Mounted() }, soon, time.Millisecond)
			require.NoError(t, server.Unmount())
			require.NoError(t, server.Unmount())
			<-server.served

			server, err = Mount(dir, layer, Options{})
			require.NoError(t, err)
			require.True(t, server.Mounted())
			require.Equal(t, "content", read(t, dir, "file"))
			require.NoError(t, server.Unmount())
			require.False(t, server.Mounted())
		})
	}
}

// TestTakenAwayUnprivileged takes away a mount that fusermount3 has made. An Unmount that
// fails while there is a mount fails.
func TestTakenAwayUnprivileged(t *testing.T) {
	needMounts(t)
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Skip(err)
	}
	dropMountPrivilege(t)
	layer, dir := layerOf(file("file", "content")), t.TempDir()
	server, err := Mount(dir, layer, Options{})
	require.NoError(t, err)
	require.NoError(t, fuserunmount(dir))
	require.NoError(t, server.Unmount())
	<-server.served

	server, err = Mount(dir, layer, Options{})
	require.NoError(t, err)
	path := os.Getenv("PATH")
	t.Setenv("PATH", "")
	require.ErrorIs(t, server.Unmount(), exec.ErrNotFound)
	t.Setenv("PATH", path)
	require.NoError(t, server.Unmount())
}

// dropMountPrivilege takes the privilege to mount from the thread of a test, which ends
// with the test.
func dropMountPrivilege(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	require.NoError(t, unix.Capget(&header, &data[0]))
	data[0].Effective &^= 1 << unix.CAP_SYS_ADMIN
	require.NoError(t, unix.Capset(&header, &data[0]))
}

// TestTakenAwayInUse has the mount taken away from outside below an overlay, which
// goes on.
func TestTakenAwayInUse(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	server, err := Mount(dir, layerOf(file("file", "content")), Options{})
	require.NoError(t, err)
	t.Run("overlay", func(t *testing.T) {
		above := overlaid(t, "", dir)
		require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH))
		require.False(t, server.Mounted())
		require.NoError(t, server.Unmount())
		require.Equal(t, "content", read(t, above, "file"))
	})
	<-server.served
}

// TestMountNowhere names the directory that is not there.
func TestMountNowhere(t *testing.T) {
	needMounts(t)
	dir := filepath.Join(t.TempDir(), "missing")
	_, err := Mount(dir, layerOf(), Options{})
	require.ErrorIs(t, err, unix.ENOENT)
	require.ErrorContains(t, err, dir)
}
