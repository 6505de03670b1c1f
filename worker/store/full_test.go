package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// A filesystem gives its last blocks out at once (tmpfs), or promises them (ext4).
var filesystems = map[string]func(t *testing.T, dir string){
	"tmpfs": func(t *testing.T, dir string) {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
			t.Skipf("mounting a tmpfs, which needs root: %v", err)
		}
	},
	"ext4": func(t *testing.T, dir string) {
		image := filepath.Join(t.TempDir(), "image")
		require.NoError(t, os.WriteFile(image, nil, 0o600))
		require.NoError(t, os.Truncate(image, 16<<20))
		for _, command := range [][]string{
			{"mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image},
			{"mount", "-o", "loop", image, dir},
		} {
			if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
				t.Skipf("%v, which needs root and loop devices: %v: %s", command, err, out)
			}
		}
	},
}

// TestDiskFull fills a filesystem, and frees it.
func TestDiskFull(t *testing.T) {
	for filesystem, mount := range filesystems {
		for kind, opts := range map[string]estargz.Options{
			"chunks":         {Level: 1, ChunkSize: 300_000},
			"shared members": {Level: 1, ChunkSize: 300_000, MinChunkSize: 100_000},
		} {
			t.Run(filesystem+" "+kind, func(t *testing.T) {
				root := t.TempDir()
				mount(t, root)
				// An index stays mapped until its garbage is collected.
				t.Cleanup(func() { require.NoError(t, unix.Unmount(root, unix.MNT_DETACH)) })
				testDiskFull(t, root, opts)
			})
		}
	}
}

func testDiskFull(t *testing.T, root string, opts estargz.Options) {
	entries := append(numbered(200, 10_000), file("large", text(99, 6<<20)))
	b := blobOf(t, opts, entries...)
	want := contentsOf(t, tarOf(t, entries...))
	s := reopen(t, root, "first boot")
	l := addedTo(t, s, b)
	f := &fake{data: b.data, window: b.size()}
	l.Connect(f.all())
	filler := filepath.Join(root, "filler")
	leave(t, filler, 3<<20)
	err := l.Fill(t.Context())
	require.ErrorIs(t, err, unix.ENOSPC)
	require.ErrorContains(t, err, "layer "+b.key.Blob.String()+": write "+root)
	fetched, corrupt, _ := f.told()
	require.Less(t, fetched, b.size()*9/10, "what finds no place is not fetched")
	require.Zero(t, corrupt, "the registry is not to blame")
	right(t, l)
	require.Positive(t, l.Stats().Present)
	_, err = read(l, find(t, l, "large"))
	require.ErrorIs(t, err, unix.ENOSPC)
	var readers sync.WaitGroup
	for name, n := range files(l) {
		readers.Go(func() {
			here := l.Here(n, 0, l.Attr(n).Size)
			got, err := read(l, n)
			if here && err != nil || err == nil && got != want[name] {
				t.Errorf("%s was here: %v, and cannot be read: %v", name, here, err)
			}
		})
	}
	readers.Wait()
	right(t, l)
	require.Zero(t, l.Stats().Corrupt)

	// A layer can be removed from a disk that has nothing left at all.
	another := blobOf(t, estargz.Options{}, file("x", "x"))
	require.NoError(t, os.Truncate(filler, 0))
	addedTo(t, s, another)
	exhaust(t, root)
	require.NoError(t, s.Remove(another.key))
	require.NoError(t, os.RemoveAll(filepath.Join(root, "exhausted")))

	other := blobOf(t, estargz.Options{}, numbered(5000, 1)...)
	leave(t, filler, 100_000)
	err = other.addTo(s)
	require.ErrorIs(t, err, unix.ENOSPC)
	list, err := os.ReadDir(s.tmpDir)
	require.NoError(t, err)
	require.Empty(t, list)

	// A store can be opened on it, in another boot as well.
	present := l.Stats().Present
	require.NoError(t, s.Close())
	s = reopen(t, root, "second boot")
	defer s.Close()
	l, err = s.Layer(b.key)
	require.NoError(t, err)
	l.Connect(f.all())
	require.Error(t, l.Fill(t.Context()))
	require.GreaterOrEqual(t, l.Stats().Present, present)

	require.NoError(t, os.Remove(filler))
	require.NoError(t, l.Fill(t.Context()))
	for name, n := range files(l) {
		got, err := read(l, n)
		require.NoError(t, err)
		require.True(t, got == want[name], name)
	}
	right(t, l)
	addedTo(t, s, other)
}

// exhaust makes files until a filesystem has no more room and no more of them.
func exhaust(t *testing.T, root string) {
	t.Helper()
	dir := filepath.Join(root, "exhausted")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "filler"), nil, 0o600))
	leave(t, filepath.Join(dir, "filler"), 100_000)
	for i := 0; ; i++ {
		name := filepath.Join(dir, fmt.Sprint(i))
		if err := errors.Join(os.Mkdir(name, 0o700), os.WriteFile(filepath.Join(name, "x"), make([]byte, 1), 0o600)); err != nil {
			require.ErrorIs(t, err, unix.ENOSPC)
			return
		}
	}
}

// leave lets a file grow until so many bytes are left of its filesystem.
func leave(t *testing.T, filler string, bytes int64) {
	t.Helper()
	f, err := os.OpenFile(filler, os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	defer f.Close()
	for {
		var st unix.Statfs_t
		require.NoError(t, unix.Fstatfs(int(f.Fd()), &st))
		info, err := f.Stat()
		require.NoError(t, err)
		more := int64(st.Bavail)*st.Bsize - bytes
		if more <= 0 {
			return
		}
		// A layer may still write what it has fetched for a read that has failed.
		if err := unix.Fallocate(int(f.Fd()), 0, info.Size(), more); err != unix.ENOSPC {
			require.NoError(t, err)
			return
		}
	}
}

// A disk has room for some bytes.
type disk struct{ left atomic.Int64 }

var errFull = errors.New("the disk is full")

func (d *disk) checkSpace(bytes int64) error {
	if bytes > d.left.Load() {
		return errFull
	}
	return nil
}

// TestNoRoom has a disk that has room for some chunks, and later for all.
func TestNoRoom(t *testing.T) {
	b := blobOf(t, estargz.Options{Level: 1, ChunkSize: 500_000}, file("here", text(1, 100_000)), file("small", text(2, 1000)), file("large", text(3, 2_000_000)))
	d := &disk{}
	s, err := Open(t.TempDir(), Options{CheckSpace: d.checkSpace})
	require.NoError(t, err)
	defer s.Close()
	l := addedTo(t, s, b)
	f := &fake{data: b.data}
	l.Connect(f.all())
	d.left.Store(100_000)
	_, err = read(l, find(t, l, "here"))
	require.NoError(t, err)

	d.left.Store(1000)
	asked := len(f.asked())
	for range 3 {
		_, err = read(l, find(t, l, "large"))
		require.EqualError(t, err, "layer "+b.key.Blob.String()+": the disk is full")
		require.ErrorIs(t, err, errFull)
	}
	require.Len(t, f.asked(), asked, "what will not be written is not fetched")
	_, err = read(l, find(t, l, "here"))
	require.NoError(t, err, "it is here")
	got, err := read(l, find(t, l, "small"))
	require.NoError(t, err, "there is room for it")
	require.Equal(t, text(2, 1000), got)
	require.ErrorIs(t, l.Fill(t.Context()), errFull)

	d.left.Store(1 << 30)
	got, err = read(l, find(t, l, "large"))
	require.NoError(t, err)
	require.True(t, got == text(3, 2_000_000))
	right(t, l)
}

// TestRoomRunsOut has others fill the disk while a member is saved, all of whose
// files somebody reads. What still has room is saved, and nobody is blamed.
func TestRoomRunsOut(t *testing.T) {
	entries := []tarEntry{file("0", text(0, 300_000)), file("1", text(1, 300_000)), file("2", text(2, 2000))}
	b := blobOf(t, estargz.Options{Level: 1, MinChunkSize: 1 << 20}, entries...)
	var calls atomic.Int32
	s, err := Open(t.TempDir(), Options{CheckSpace: func(bytes int64) error {
		// The first piece of the second file is written, the second one is not.
		if calls.Add(1) > 5 && bytes > 2000 {
			return errFull
		}
		return nil
	}})
	require.NoError(t, err)
	defer s.Close()
	l := addedTo(t, s, b)
	f := &fake{data: b.data, window: 1 << 20}
	l.Connect(f.all())
	require.ErrorIs(t, l.Fill(t.Context()), errFull)
	for i, want := range []bool{true, false, true} {
		n := find(t, l, fmt.Sprint(i))
		require.Equal(t, want, l.Here(n, 0, l.Attr(n).Size), i)
	}
	_, corrupt, _ := f.told()
	require.Zero(t, corrupt)
	require.Zero(t, l.Stats().Corrupt)
	right(t, l)
}

// TestNoRoomForCopy has the contents in another layer.
func TestNoRoomForCopy(t *testing.T) {
	d := &disk{}
	d.left.Store(1 << 20)
	s, err := Open(t.TempDir(), Options{CheckSpace: d.checkSpace})
	require.NoError(t, err)
	defer s.Close()
	first := blobOf(t, estargz.Options{}, file("a", text(1, 5000)))
	second := blobOf(t, estargz.Options{}, file("b", text(1, 5000)))
	f := &fake{data: first.data}
	l := addedTo(t, s, first)
	l.Connect(f.all())
	require.NoError(t, l.Fill(t.Context()))
	d.left.Store(0)
	l = addedTo(t, s, second)
	_, err = read(l, find(t, l, "b"))
	require.EqualError(t, err, "layer "+second.key.Blob.String()+": the disk is full")
	d.left.Store(5000)
	got, err := read(l, find(t, l, "b"))
	require.NoError(t, err)
	require.Equal(t, text(1, 5000), got)
}

// TestNoneToSpare copies nothing from another layer that nobody waits for.
func TestNoneToSpare(t *testing.T) {
	spare := errFull
	s, err := Open(t.TempDir(), Options{Spare: func() error { return spare }})
	require.NoError(t, err)
	defer s.Close()
	first := orderedBlob(t, []string{"a"}, estargz.Options{}, file("a", text(1, 5000)))
	second := orderedBlob(t, []string{"b"}, estargz.Options{}, file("b", text(1, 5000)))
	f := &fake{data: first.data}
	l := addedTo(t, s, first)
	l.Connect(f.all())
	_, err = read(l, find(t, l, "a"))
	require.NoError(t, err, "somebody waits for it")
	l = addedTo(t, s, second)
	l.Connect(f.all())
	require.ErrorIs(t, l.Prefetch(t.Context()), errFull)
	require.ErrorIs(t, l.Fill(t.Context()), errFull)
	require.Zero(t, l.Stats().Present)
	spare = nil
	require.NoError(t, l.Fill(t.Context()))
	require.True(t, l.Complete())
}
