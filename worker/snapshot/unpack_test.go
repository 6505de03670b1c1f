package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// withoutMounts opens lazy snapshots again where nothing can be mounted any more.
func withoutMounts(t *testing.T, names ...string) (s *Snapshotter, lazy *bindLazy, root string) {
	t.Helper()
	needRoot(t)
	lazy, root = newLazy(t), t.TempDir()
	s = open(t, root, lazy)
	prepare(t, s, names...)
	require.NoError(t, s.Close())
	lazy.noMount = noFUSE{errors.New("no FUSE")}
	return open(t, root, lazy), lazy, root
}

type noFUSE struct{ error }

func (noFUSE) Unmountable() {}

// A layer that was mounted and cannot be any more is unpacked, once and for all.
func TestUnpack(t *testing.T) {
	s, lazy, root := withoutMounts(t, "base", "top")
	for _, name := range []string{"base", "top"} {
		info, err := s.Stat(t.Context(), name)
		require.NoError(t, err)
		require.NotContains(t, info.Labels, UnpackedLabel)
	}
	// It takes long, and no method that BuildKit calls with locks held waits for it.
	lazy.unpack = func(ctx context.Context, _ string) error {
		for _, key := range []string{"one", "two"} {
			if _, err := s.Prepare(ctx, key, "top"); err != nil {
				return err
			}
			if _, err := s.Mounts(ctx, key); err != nil {
				return err
			}
			if err := s.Remove(ctx, key); err != nil {
				return err
			}
		}
		_, err := s.View(ctx, "view", "top")
		return errors.Join(err, s.Remove(ctx, "view"))
	}
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() { assert.NoError(t, s.Show(t.Context(), "base", "top")) })
	}
	both.Wait()
	require.Contains(t, lazy.reported, "base")
	require.LessOrEqual(t, len(lazy.reported), 2, "once for each who asks")
	for _, noMount := range []error{lazy.noMount, nil} { // with FUSE it stays so
		lazy.noMount = noMount
		require.Equal(t, 2, lazy.unpacked)
		require.Equal(t, "base", read(t, s, "base", "file"))
		require.Equal(t, "top", read(t, s, "top", "file"))
		require.Zero(t, mountsBelow(t, root))
		layers, err := lazy.Layers()
		require.NoError(t, err)
		require.Empty(t, layers, "what was fetched takes no room twice")
		for _, name := range []string{"base", "top"} {
			require.NoError(t, s.Show(t.Context(), name))
			info, err := s.Stat(t.Context(), name)
			require.NoError(t, err)
			require.Contains(t, info.Labels, UnpackedLabel)
			require.Contains(t, info.Labels, remoteLabel)
		}
		prepare(t, s, "base", "top")
		require.NoError(t, s.Close())
		s = open(t, root, lazy)
	}
	require.NoError(t, s.Remove(t.Context(), "top"))
	require.NoError(t, s.Remove(t.Context(), "base"))
	require.NoError(t, s.Cleanup(t.Context()))
	directories, err := os.ReadDir(s.dir)
	require.NoError(t, err)
	require.Empty(t, directories)
}

// Whatever ends it, the snapshot is lazy as before, and the next one unpacks it.
func TestUnpackInterrupted(t *testing.T) {
	s, lazy, root := withoutMounts(t, "base")
	entered, left := make(chan struct{}), errors.New("the build was cancelled")
	lazy.unpack = func(ctx context.Context, _ string) error {
		close(entered)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	first := make(chan error, 1)
	go func() { first <- s.Show(ctx, "base") }()
	<-entered
	lazy.mu.Lock()
	lazy.unpack = nil
	lazy.mu.Unlock()
	gone, leave := context.WithCancelCause(t.Context())
	leave(left)
	require.ErrorIs(t, s.Show(gone, "base"), left, "another that waits")
	dir := s.shown["base"].dir
	require.Empty(t, entriesOf(t, dir))
	second := make(chan error, 1)
	go func() { second <- s.Show(t.Context(), "base") }()
	cancel(left)
	require.ErrorIs(t, <-first, left)
	require.NoError(t, <-second)
	require.Equal(t, "base", read(t, s, "base", "file"))
	require.ElementsMatch(t, []string{"fs", "work"}, entriesOf(t, filepath.Dir(dir)))

	// A kill leaves what was written so far.
	require.NoError(t, s.Close())
	part := filepath.Join(filepath.Dir(dir), partPrefix+"1")
	require.NoError(t, os.Mkdir(part, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(part, "file"), nil, 0o600))
	s = open(t, root, lazy)
	require.NoDirExists(t, part)
	require.Equal(t, "base", read(t, s, "base", "file"))
}

func entriesOf(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// An error that says nothing about mounts in general fails the build that needs the
// layer, and the next one mounts it.
func TestMountFailsOnce(t *testing.T) {
	s, lazy, _ := withoutMounts(t, "base")
	lazy.noMount = unix.EMFILE
	for range 2 {
		require.ErrorIs(t, s.Show(t.Context(), "base"), unix.EMFILE)
	}
	require.Zero(t, lazy.unpacked)
	require.Empty(t, lazy.reported)
	lazy.noMount = nil
	require.NoError(t, s.Show(t.Context(), "base"))
	require.Equal(t, "base", read(t, s, "base", "file"))
	require.Zero(t, lazy.unpacked)
}

// A caller that is cancelled is told so, and not how the layer's registry has failed since.
func TestLeftWhileUnpacked(t *testing.T) {
	s, lazy, _ := withoutMounts(t, "base")
	ctx, cancel := context.WithCancelCause(t.Context())
	lazy.unpack = func(context.Context, string) error {
		cancel(errLeft)
		return errors.New("no credentials")
	}
	require.ErrorIs(t, s.Show(ctx, "base"), errLeft)
}

// A snapshot that is removed meanwhile stays so.
func TestRemovedWhileUnpacked(t *testing.T) {
	s, lazy, _ := withoutMounts(t, "base")
	lazy.unpack = func(context.Context, string) error {
		require.NoError(t, s.Remove(t.Context(), "base"))
		return s.Cleanup(t.Context())
	}
	require.Error(t, s.Show(t.Context(), "base"))
	require.Empty(t, entriesOf(t, s.dir))
	lazy.unpack = nil
	lazy.noMount = nil
	prepare(t, s, "base")
	require.Equal(t, "base", read(t, s, "base", "file"))
}
