package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// bindLazy has a directory for each layer, which is bind mounted.
type bindLazy struct {
	dir string

	mu      sync.Mutex
	refused error
	fetched int
	fail    error // of Fetch and Mount
	noMount error // of Mount
	// unpack, if set, is called by Unpack before it is done.
	unpack   func(ctx context.Context, dir string) error
	unpacked int
	reported []string // layers of which Unpacking was called
}

const layerLabel = "containerd.io/snapshot/test.layer"

func newLazy(t *testing.T) *bindLazy {
	return &bindLazy{dir: t.TempDir()}
}

func (l *bindLazy) ID(labels map[string]string) (string, error) {
	if id := labels[layerLabel]; id != "" {
		return id, nil
	}
	return "", errors.New("no layer in the labels")
}

func (l *bindLazy) Fetch(_ context.Context, id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return l.fail
	}
	l.fetched++
	if err := os.MkdirAll(filepath.Join(l.dir, id), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.dir, id, "file"), []byte(id), 0o600)
}

func (l *bindLazy) Refused(_ context.Context, _ map[string]string, why error) { l.refused = why }

func (l *bindLazy) Mount(id, dir string, _ map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return l.fail
	}
	if l.Unpacked(dir) {
		return nil
	}
	if l.noMount != nil {
		return l.noMount
	}
	return unix.Mount(filepath.Join(l.dir, id), dir, "", unix.MS_BIND, "")
}

func (l *bindLazy) Mounted(dir string) bool {
	mounted, err := mountinfo.Mounted(dir)
	return mounted && err == nil || l.Unpacked(dir)
}

func (l *bindLazy) Unpacking(_ context.Context, labels map[string]string, _ error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reported = append(l.reported, labels[layerLabel])
}

func (l *bindLazy) Unpack(ctx context.Context, id, dir string, _ map[string]string) error {
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte(id), 0o600); err != nil {
		return err
	}
	l.mu.Lock()
	unpack := l.unpack
	l.unpacked++
	l.mu.Unlock()
	if unpack != nil {
		return unpack(ctx, dir)
	}
	return nil
}

func (l *bindLazy) Unpacked(dir string) bool {
	entries, err := os.ReadDir(dir)
	mounted, mountErr := mountinfo.Mounted(dir)
	return err == nil && mountErr == nil && !mounted && len(entries) > 0
}

func (l *bindLazy) Unmount(dir string) error {
	if !l.Mounted(dir) || l.Unpacked(dir) {
		return nil
	}
	return unix.Unmount(dir, unix.MNT_DETACH)
}

func (l *bindLazy) Usage(id, dir string) (snapshots.Usage, error) {
	return snapshots.Usage{Size: 4711}, nil
}

func (l *bindLazy) Layers() ([]string, error) {
	entries, err := os.ReadDir(l.dir)
	var ids []string
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	return ids, err
}

func (l *bindLazy) Remove(id string) error { return os.RemoveAll(filepath.Join(l.dir, id)) }

func needRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
}

func open(t *testing.T, root string, lazy Lazy) *Snapshotter {
	t.Helper()
	s, err := New(t.Context(), root, lazy)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// prepare makes lazy snapshots upon one another, each with the layer of its name.
func prepare(t *testing.T, s *Snapshotter, names ...string) {
	t.Helper()
	parent := ""
	for _, name := range names {
		_, err := s.Prepare(t.Context(), "tmp-"+name, parent, wanted(name))
		require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
		parent = name
	}
}

func wanted(name string) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{targetLabel: name, layerLabel: name})
}

// read returns a file of a snapshot's view.
func read(t *testing.T, s *Snapshotter, name, file string) string {
	t.Helper()
	for at := name; at != ""; {
		info, err := s.Stat(t.Context(), at)
		require.NoError(t, err)
		if isLazy(info) {
			require.NoError(t, s.Show(t.Context(), at))
		}
		at = info.Parent
	}
	key := "view-" + name
	mounts, err := s.View(t.Context(), key, name)
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Remove(t.Context(), key)) }()
	var content []byte
	require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(root string) error {
		content, err = os.ReadFile(filepath.Join(root, file))
		return err
	}))
	return string(content)
}

func mountsBelow(t *testing.T, dir string) int {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	require.NoError(t, err)
	return len(infos)
}

func TestSuite(t *testing.T) {
	needRoot(t)
	// By this name the suite leaves out what overlayfs cannot do.
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := New(ctx, root, newLazy(t))
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	})
}

func TestLazySnapshots(t *testing.T) {
	needRoot(t)
	lazy, root := newLazy(t), t.TempDir()
	s := open(t, root, lazy)
	prepare(t, s, "base", "top")
	require.Equal(t, "top", read(t, s, "top", "file"))
	require.Equal(t, "base", read(t, s, "base", "file"))

	info, err := s.Stat(t.Context(), "top")
	require.NoError(t, err)
	require.Equal(t, snapshots.KindCommitted, info.Kind)
	require.Equal(t, "base", info.Parent)
	require.Contains(t, info.Labels, remoteLabel)
	require.NotContains(t, info.Labels, upperdirLabel)

	usage, err := s.Usage(t.Context(), "top")
	require.NoError(t, err)
	require.EqualValues(t, 4711, usage.Size)

	info.Labels = map[string]string{"containerd.io/snapshot/other": "new"}
	info, err = s.Update(t.Context(), info, "labels.containerd.io/snapshot/other")
	require.NoError(t, err)
	require.Equal(t, "new", info.Labels["containerd.io/snapshot/other"])
	require.NotContains(t, info.Labels, upperdirLabel)

	// A second time, as after a crash between this snapshotter and its caller.
	prepare(t, s, "base", "top")
	require.Equal(t, 2, mountsBelow(t, root))
}

// Images that share a base ask for its snapshots at the same time.
func TestSameTarget(t *testing.T) {
	needRoot(t)
	s := open(t, t.TempDir(), newLazy(t))
	for round := range 10 {
		target := fmt.Sprint("base-", round)
		errs := make([]error, 8)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { _, errs[i] = s.Prepare(t.Context(), fmt.Sprint("tmp-", target, i), "", wanted(target)) })
		}
		wg.Wait()
		for _, err := range errs {
			require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
		}
		require.Equal(t, target, read(t, s, target, "file"))
	}
	require.Empty(t, s.targets.held)
}

func TestNotLazy(t *testing.T) {
	needRoot(t)
	lazy := newLazy(t)
	lazy.fail = errors.New("no TOC")
	s := open(t, t.TempDir(), lazy)
	mounts, err := s.Prepare(t.Context(), "tmp", "", wanted("base"))
	require.NoError(t, err, "an ordinary snapshot to unpack the layer into")
	require.NotEmpty(t, mounts)
	require.ErrorIs(t, lazy.refused, lazy.fail)
	_, err = s.Stat(t.Context(), "base")
	require.True(t, errdefs.IsNotFound(err))

	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the build was cancelled"))
	_, err = s.Prepare(ctx, "tmp2", "", wanted("base"))
	require.EqualError(t, err, "the build was cancelled")
}

func TestRestart(t *testing.T) {
	needRoot(t)
	for _, killed := range []bool{false, true} {
		lazy, root := newLazy(t), t.TempDir()
		s := open(t, root, lazy)
		prepare(t, s, "base", "top")
		if killed {
			// All that a kill closes of this snapshotter is its database.
			require.NoError(t, s.Snapshotter.Close())
		} else {
			require.NoError(t, s.Close())
			require.Zero(t, mountsBelow(t, root))
		}
		s = open(t, root, lazy)
		require.Equal(t, 2, mountsBelow(t, root))
		require.Equal(t, "top", read(t, s, "top", "file"))
		require.Equal(t, 2, lazy.fetched, "nothing is fetched again")
	}
}

// A layer that is lost must not look like an empty one, and comes back when it
// can be fetched.
func TestBroken(t *testing.T) {
	needRoot(t)
	lazy, root := newLazy(t), t.TempDir()
	s := open(t, root, lazy)
	prepare(t, s, "base", "top")
	_, err := s.Prepare(t.Context(), "active", "top")
	require.NoError(t, err)
	require.NoError(t, s.Close())

	lazy.fail = errors.New("disk is broken")
	s = open(t, root, lazy)
	require.ErrorContains(t, s.Show(t.Context(), "base", "top"), "disk is broken")
	_, err = s.Mounts(t.Context(), "active")
	require.NoError(t, err, "it is asked for with locks held")

	lazy.fail = nil
	require.Equal(t, "base", read(t, s, "base", "file"))
	require.Equal(t, "top", read(t, s, "top", "file"))
}

// A mount that somebody takes away is there again for the next user, and its
// snapshot can be removed.
func TestTakenAway(t *testing.T) {
	needRoot(t)
	lazy, root := newLazy(t), t.TempDir()
	s := open(t, root, lazy)
	prepare(t, s, "base", "top")
	for _, name := range []string{"base", "top"} {
		require.NoError(t, unix.Unmount(s.shown[name].dir, unix.MNT_DETACH))
	}
	require.Equal(t, "top", read(t, s, "top", "file"))
	require.Equal(t, 2, mountsBelow(t, root))

	require.NoError(t, unix.Unmount(s.shown["top"].dir, unix.MNT_DETACH))
	require.NoError(t, s.Remove(t.Context(), "top"))
	require.NoError(t, s.Remove(t.Context(), "base"))
	require.NoError(t, s.Cleanup(t.Context()))
	require.Zero(t, mountsBelow(t, root))
	require.NoDirExists(t, filepath.Join(lazy.dir, "top"))
}

func TestRemoval(t *testing.T) {
	needRoot(t)
	lazy, root := newLazy(t), t.TempDir()
	s := open(t, root, lazy)
	prepare(t, s, "base", "top")
	require.NoError(t, s.Remove(t.Context(), "top"))
	require.NoError(t, s.Cleanup(t.Context()))
	require.Equal(t, 1, mountsBelow(t, root))
	require.Equal(t, "base", read(t, s, "base", "file"))
	layers, err := lazy.Layers()
	require.NoError(t, err)
	require.Equal(t, []string{"base"}, layers)

	release, err := s.hold(t.Context(), "base")
	require.NoError(t, err)
	require.NoError(t, s.Remove(t.Context(), "base"))
	require.NoError(t, s.Cleanup(t.Context()))
	require.Zero(t, mountsBelow(t, root))
	require.DirExists(t, filepath.Join(lazy.dir, "base"), "somebody is about to use it")
	release()
	require.NoError(t, s.Cleanup(t.Context()))
	require.NoDirExists(t, filepath.Join(lazy.dir, "base"))
	directories, err := os.ReadDir(filepath.Join(root, "snapshots"))
	require.NoError(t, err)
	require.Empty(t, directories)
}

// Whoever prepares and whoever cleans up do not get in each other's way.
func TestConcurrently(t *testing.T) {
	needRoot(t)
	lazy := newLazy(t)
	s := open(t, t.TempDir(), lazy)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = s.Cleanup(t.Context())
			}
		}
	})
	for range 50 {
		prepare(t, s, "base", "top")
		require.Equal(t, "top", read(t, s, "top", "file"))
		require.NoError(t, s.Remove(t.Context(), "top"))
		require.NoError(t, s.Remove(t.Context(), "base"))
	}
	close(stop)
	wg.Wait()
}
