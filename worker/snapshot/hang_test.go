package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// hangingLazy hangs in one of its methods when that is about a certain layer.
type hangingLazy struct {
	*bindLazy
	layer, method string
	entered       chan struct{} // gets one for each call that hangs
	answer        chan struct{} // closed to end them

	mu   sync.Mutex
	dirs map[string]string // layers by directory
}

func newHanging(t *testing.T, layer, method string) *hangingLazy {
	watchdog := time.AfterFunc(time.Minute, func() { panic(t.Name() + " hangs") })
	t.Cleanup(func() { watchdog.Stop() })
	return &hangingLazy{
		bindLazy: newLazy(t), layer: layer, method: method,
		entered: make(chan struct{}, 10), answer: make(chan struct{}), dirs: map[string]string{},
	}
}

func (l *hangingLazy) hang(method, layer string) {
	if method == l.method && layer == l.layer {
		l.entered <- struct{}{}
		<-l.answer
	}
}

func (l *hangingLazy) at(dir string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dirs[dir]
}

func (l *hangingLazy) Mount(id, dir string, labels map[string]string) error {
	l.mu.Lock()
	l.dirs[dir] = id
	l.mu.Unlock()
	l.hang("Mount", id)
	return l.bindLazy.Mount(id, dir, labels)
}

func (l *hangingLazy) Mounted(dir string) bool {
	l.hang("Mounted", l.at(dir))
	return l.bindLazy.Mounted(dir)
}

func (l *hangingLazy) Unmount(dir string) error {
	l.hang("Unmount", l.at(dir))
	return l.bindLazy.Unmount(dir)
}

func (l *hangingLazy) Remove(id string) error {
	l.hang("Remove", id)
	return l.bindLazy.Remove(id)
}

var errLeft = errors.New("the build was cancelled")

// leave makes a call that hangs, and cancels it.
func (l *hangingLazy) leave(t *testing.T, do func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	<-l.entered
	cancel(errLeft)
	require.ErrorIs(t, <-done, errLeft)
}

// others uses all methods for snapshots that have nothing to do with what hangs.
func others(t *testing.T, s *Snapshotter) {
	t.Helper()
	ctx := t.Context()
	prepare(t, s, "base", "top")
	require.Equal(t, "top", read(t, s, "top", "file"))
	_, err := s.Prepare(ctx, "active", "top")
	require.NoError(t, err)
	_, err = s.Mounts(ctx, "active")
	require.NoError(t, err)
	require.NoError(t, s.Remove(ctx, "active"))
	for _, name := range []string{"top", "base"} {
		_, err = s.Stat(ctx, name)
		require.NoError(t, err)
		_, err = s.Usage(ctx, name)
		require.NoError(t, err)
		require.NoError(t, s.Remove(ctx, name))
	}
}

func left() context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errLeft)
	return ctx
}

// openHanging opens snapshots with a layer whose mount hangs and whose build has
// left.
func openHanging(t *testing.T) (s *Snapshotter, lazy *hangingLazy, root string) {
	t.Helper()
	needRoot(t)
	lazy, root = newHanging(t, "stuck", "Mount"), t.TempDir()
	s = open(t, root, lazy)
	lazy.leave(t, func(ctx context.Context) error {
		_, err := s.Prepare(ctx, "tmp", "", wanted("stuck"))
		return err
	})
	return s, lazy, root
}

// Who needs a mount that hangs waits for as long as its build does, or for
// mountTime. Nobody else does.
func TestMountHangs(t *testing.T) {
	s, lazy, root := openHanging(t)
	others(t, s)
	require.NoError(t, s.Cleanup(t.Context()))
	require.ErrorIs(t, s.Show(left(), "stuck"), errLeft)

	s.patience = time.Millisecond
	require.ErrorIs(t, s.Show(t.Context(), "stuck"), errNoAnswer)
	mounts, err := s.Prepare(t.Context(), "unpacked", "", wanted("stuck"))
	require.NoError(t, err, "an ordinary snapshot to unpack the layer into")
	require.NotEmpty(t, mounts)
	require.ErrorIs(t, lazy.refused, errNoAnswer)

	s.patience = mountTime
	close(lazy.answer)
	require.Equal(t, "stuck", read(t, s, "stuck", "file"))
	require.Equal(t, 1, mountsBelow(t, root))
}

// It does not matter whether the snapshot is still there when its mount is.
func TestRemovedWhileMountHangs(t *testing.T) {
	s, lazy, root := openHanging(t)
	require.NoError(t, s.Remove(t.Context(), "stuck"))
	others(t, s)
	require.ErrorIs(t, s.Cleanup(left()), errLeft)
	close(lazy.answer)
	require.NoError(t, s.Cleanup(t.Context()))
	require.Zero(t, mountsBelow(t, root))
	layers, err := lazy.Layers()
	require.NoError(t, err)
	require.Empty(t, layers)
}

func TestLookHangs(t *testing.T) {
	needRoot(t)
	lazy := newHanging(t, "stuck", "Mounted")
	s := open(t, t.TempDir(), lazy)
	prepare(t, s, "stuck")
	lazy.leave(t, func(ctx context.Context) error { return s.Show(ctx, "stuck") })
	others(t, s)
	require.NoError(t, s.Cleanup(t.Context()))
	close(lazy.answer)
	require.Equal(t, "stuck", read(t, s, "stuck", "file"))
}

func TestUnmountHangs(t *testing.T) {
	needRoot(t)
	lazy, root := newHanging(t, "stuck", "Unmount"), t.TempDir()
	s := open(t, root, lazy)
	prepare(t, s, "stuck")
	removed := s.shown["stuck"]
	require.NoError(t, s.Remove(t.Context(), "stuck"))
	lazy.leave(t, s.Cleanup)
	require.ErrorIs(t, s.mount(left(), removed), errLeft)
	others(t, s)
	prepare(t, s, "stuck")
	require.Equal(t, "stuck", read(t, s, "stuck", "file"))
	require.Equal(t, 4, mountsBelow(t, root), "those that were removed wait for a Cleanup")
	close(lazy.answer)
	require.NoError(t, s.Cleanup(t.Context()))
	require.ErrorIs(t, s.mount(t.Context(), removed), errdefs.ErrNotFound)
	require.Equal(t, 1, mountsBelow(t, root))
	require.Equal(t, "stuck", read(t, s, "stuck", "file"))
}

// A layer that is being removed from the disk is fetched again afterwards.
func TestRemovalHangs(t *testing.T) {
	needRoot(t)
	lazy := newHanging(t, "stuck", "Remove")
	s := open(t, t.TempDir(), lazy)
	prepare(t, s, "stuck")
	require.NoError(t, s.Remove(t.Context(), "stuck"))
	cleaned := make(chan error, 1)
	go func() { cleaned <- s.Cleanup(context.Background()) }()
	<-lazy.entered
	others(t, s)
	require.NoError(t, s.Cleanup(t.Context()))
	_, err := s.Prepare(left(), "tmp", "", wanted("stuck"))
	require.ErrorIs(t, err, errLeft)
	close(lazy.answer)
	prepare(t, s, "stuck")
	require.NoError(t, <-cleaned)
	require.Equal(t, "stuck", read(t, s, "stuck", "file"))
	require.NoError(t, s.Remove(t.Context(), "stuck"))
}

// What is removed while others clean up is left to the next Cleanup.
func TestRemovedDuringCleanup(t *testing.T) {
	needRoot(t)
	lazy, root := newLazy(t), t.TempDir()
	s := open(t, root, lazy)
	prepare(t, s, "base")
	dir := s.shown["base"].dir
	require.NoError(t, s.Remove(t.Context(), "base"))
	require.NoError(t, s.removeDirectories(t.Context()))
	require.NoError(t, s.removeUnused())
	require.FileExists(t, filepath.Join(dir, "file"))
	require.NoError(t, s.Cleanup(t.Context()))
	require.NoDirExists(t, dir)
	require.NoDirExists(t, filepath.Join(lazy.dir, "base"))
}

// The error of a layer that cannot be unmounted names it; others are freed.
func TestUnmountFails(t *testing.T) {
	needRoot(t)
	lazy, root := &stickyLazy{bindLazy: newLazy(t)}, t.TempDir()
	s := open(t, root, lazy)
	prepare(t, s, "sticky")
	lazy.sticks = s.shown["sticky"].dir
	prepare(t, s, "other")
	require.NoError(t, s.Remove(t.Context(), "other"))
	require.NoError(t, s.Remove(t.Context(), "sticky"))
	err := s.Cleanup(t.Context())
	require.ErrorIs(t, err, unix.EBUSY)
	require.ErrorContains(t, err, "sticky")
	layers, err := lazy.Layers()
	require.NoError(t, err)
	require.Equal(t, []string{"sticky"}, layers)
	directories, err := os.ReadDir(filepath.Join(root, "snapshots"))
	require.NoError(t, err)
	require.Len(t, directories, 1)
	require.FileExists(t, filepath.Join(lazy.sticks, "file"))

	lazy.sticks = ""
	require.NoError(t, s.Cleanup(t.Context()))
	require.Zero(t, mountsBelow(t, root))
}

// stickyLazy cannot unmount a directory.
type stickyLazy struct {
	*bindLazy
	sticks string
}

func (l *stickyLazy) Unmount(dir string) error {
	if dir == l.sticks {
		return unix.EBUSY
	}
	return l.bindLazy.Unmount(dir)
}

// Layers that are in use take a while to unmount, and do so side by side.
func TestCloseAtOnce(t *testing.T) {
	needRoot(t)
	lazy := &together{bindLazy: newLazy(t)}
	s := open(t, t.TempDir(), lazy)
	prepare(t, s, "one", "two")
	lazy.all.Add(2)
	require.NoError(t, s.Close())
}

// together unmounts none before it is asked for all.
type together struct {
	*bindLazy
	all sync.WaitGroup
}

func (l *together) Unmount(dir string) error {
	l.all.Done()
	l.all.Wait()
	return l.bindLazy.Unmount(dir)
}
