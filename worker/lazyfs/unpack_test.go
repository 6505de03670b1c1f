package lazyfs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// manyKinds has a file of each kind, and all that is told of one.
func manyKinds() *fake {
	return layerOf(
		dir("bin"), file("bin/su", "program"), owned("bin/su", 0, 42, 0o4755), hardLink("bin/again", "bin/su"),
		symlink("link", "bin/su"), owned("link", 5, 6, 0o777), hardLink("link2", "link"),
		device("null", unix.S_IFCHR|0o666, 1, 3), device("disk", unix.S_IFBLK|0o660, 254, 7), device("pipe", unix.S_IFIFO|0o600, 0, 0),
		whiteout("gone"), opaqueDir("opaque"), file("opaque/file", "new"),
		dir("tmp"), owned("tmp", 100000, 70000, 0o1777), dir("closed"), file("closed/file", "hidden"), owned("closed", 0, 0, 0),
		file("empty", ""), large("large", 3*maxRead+1),
		xattr("bin/su", "security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
		xattr("tmp", "user.some", "value"), xattr("closed", "trusted.overlay.redirect", "/elsewhere"),
	)
}

// What is unpacked is what is mounted.
func TestUnpack(t *testing.T) {
	layer := manyKinds()
	root := t.TempDir()
	shown := mounted(t, layer, Options{})
	require.NoError(t, Unpack(t.Context(), root, layer, Options{}, anyRoom))
	want := described(t, shown)
	require.Contains(t, want, "/large")
	got := described(t, root)
	require.Len(t, got, len(want))
	for name, is := range want {
		require.Equal(t, is, got[name], name)
	}
}

func anyRoom(int64) error { return nil }

// described tells all of the files below a directory, by their names.
func described(t *testing.T, dir string) map[string]any {
	type told struct {
		mode, uid, gid uint32
		links          uint64
		size           int64
		device         uint64
		mtime          unix.Timespec
		target         string
		content        [sha256.Size]byte
		xattrs         map[string]string
		first          string // of the names of the file
	}
	all, first := map[string]any{}, map[uint64]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		require.NoError(t, err)
		name := strings.TrimPrefix(path, dir)
		var s unix.Stat_t
		require.NoError(t, unix.Lstat(path, &s))
		is := told{mode: s.Mode, uid: s.Uid, gid: s.Gid, links: s.Nlink, size: s.Size, device: s.Rdev, mtime: s.Mtim, xattrs: map[string]string{}}
		if _, ok := first[s.Ino]; !ok {
			first[s.Ino] = name
		}
		is.first = first[s.Ino]
		switch {
		case e.IsDir():
			is.size, is.links = 0, 0 // each filesystem's own
		case e.Type().IsRegular():
			is.content = sha256.Sum256([]byte(read(t, path)))
		case e.Type() == fs.ModeSymlink:
			is.target, err = os.Readlink(path)
			require.NoError(t, err)
		}
		list := make([]byte, 1<<10)
		n, err := unix.Llistxattr(path, list)
		require.NoError(t, err)
		for _, key := range strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 }) {
			value := make([]byte, 1<<10)
			n, err := unix.Lgetxattr(path, key, value)
			require.NoError(t, err)
			is.xattrs[key] = string(value[:n])
		}
		all[name] = is
		return nil
	}))
	return all
}

// What a pull leaves out of a layer is left out, and does not end the unpacking.
func TestUnpackLeavesOut(t *testing.T) {
	needMounts(t) // which takes root, too
	root := t.TempDir()
	require.NoError(t, Unpack(t.Context(), root, layerOf(
		file("file", ""), xattr("file", "trusted.other", "value"), xattr("file", "user.some", "value"),
		device("pipe", unix.S_IFIFO|0o600, 0, 0), xattr("pipe", "user.some", "value"),
	), Options{}, anyRoom))
	list := make([]byte, 1<<10)
	for name, want := range map[string]string{"file": "user.some\x00", "pipe": ""} {
		n, err := unix.Llistxattr(filepath.Join(root, name), list)
		require.NoError(t, err)
		require.Equal(t, want, string(list[:n]), name)
	}
}

// Names take room as contents do.
func TestUnpackRoomForNames(t *testing.T) {
	needMounts(t)
	sum := int64(0)
	require.NoError(t, Unpack(t.Context(), t.TempDir(), layerOf(dir("a"), dir("b"), symlink("c", "a")), Options{}, func(bytes int64) error {
		sum += bytes
		return nil
	}))
	require.Equal(t, 3*inodeSize, sum)
}

// Others write to the same disk meanwhile, such as another layer that is unpacked.
func TestUnpackRoomWhileWriting(t *testing.T) {
	needMounts(t) // which takes root, too
	layer, full, why := layerOf(large("large", 4*maxRead)), false, errors.New("full")
	layer.before = func(_ context.Context, _ store.Node, off int64) error {
		full = off > 0
		return nil
	}
	root := t.TempDir()
	require.ErrorIs(t, Unpack(t.Context(), root, layer, Options{}, func(int64) error {
		if full {
			return why
		}
		return nil
	}), why)
	got, err := os.Stat(filepath.Join(root, "large"))
	require.NoError(t, err)
	require.EqualValues(t, 2*maxRead, got.Size())
}

// Files with several links take little memory until the last is made, however long
// their paths are.
func TestUnpackMemory(t *testing.T) {
	needMounts(t) // which takes root, too
	const files = 2000
	deep := strings.Repeat("x", unix.NAME_MAX)
	parts := []part{dir(deep)}
	for range 13 {
		deep = filepath.Join(deep, strings.Repeat("x", unix.NAME_MAX))
		parts = append(parts, dir(deep))
	}
	for i := range files {
		name := filepath.Join(deep, fmt.Sprint(i))
		parts = append(parts, symlink(name, "target"), hardLink(name+"-again", name))
	}
	layer := layerOf(parts...)
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before, left, root := heap(), len(parts), t.TempDir()
	require.NoError(t, Unpack(t.Context(), root, layer, Options{}, func(int64) error {
		if left--; left == 0 {
			require.Less(t, heap()-before, int64(files*256+2*maxRead))
		}
		return nil
	}))
	require.Zero(t, left)
	require.Len(t, names(t, filepath.Join(root, deep)), 2*files)
}

// What cannot be read, or has no room, ends it with the reason.
func TestUnpackFails(t *testing.T) {
	needMounts(t) // which takes root, too
	layer, why := layerOf(file("file", "content"), large("large", 2*maxRead)), errors.New("the reason")
	require.ErrorIs(t, Unpack(t.Context(), t.TempDir(), layer, Options{}, func(bytes int64) error {
		if bytes == 2*maxRead {
			return why
		}
		return nil
	}), why)
	layer.before = func(ctx context.Context, _ store.Node, off int64) error {
		if off > 0 {
			return why
		}
		return nil
	}
	require.ErrorIs(t, Unpack(t.Context(), t.TempDir(), layer, Options{}, anyRoom), why)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	require.ErrorIs(t, Unpack(ctx, t.TempDir(), layer, Options{}, anyRoom), why)
}
