package lazyfs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestAttributes looks at each type of file with all that stat(2) tells.
func TestAttributes(t *testing.T) {
	dir := mounted(t, layerOf(
		dir("bin"), file("bin/su", "program"), owned("bin/su", 0, 42, 0o4755), hardLink("bin/again", "bin/su"),
		symlink("link", "bin/su"),
		device("null", unix.S_IFCHR|0o666, 1, 3), device("disk", unix.S_IFBLK|0o660, 254, 7), device("pipe", unix.S_IFIFO|0o600, 0, 0),
		dir("tmp"), owned("tmp", 100000, 70000, 0o1777),
		file("empty", ""),
	), Options{})
	type expected struct {
		mode, uid, gid uint32
		links          uint64
		size           int64
		device         uint64
	}
	for name, e := range map[string]expected{
		".":         {mode: unix.S_IFDIR | 0o755, links: 4},
		"bin":       {mode: unix.S_IFDIR | 0o755, links: 2},
		"bin/su":    {mode: unix.S_IFREG | 0o4755, gid: 42, links: 2, size: 7},
		"bin/again": {mode: unix.S_IFREG | 0o4755, gid: 42, links: 2, size: 7},
		"link":      {mode: unix.S_IFLNK | 0o777, links: 1, size: 6},
		"null":      {mode: unix.S_IFCHR | 0o666, links: 1, device: unix.Mkdev(1, 3)},
		"disk":      {mode: unix.S_IFBLK | 0o660, links: 1, device: unix.Mkdev(254, 7)},
		"pipe":      {mode: unix.S_IFIFO | 0o600, links: 1},
		"tmp":       {mode: unix.S_IFDIR | 0o1777, uid: 100000, gid: 70000, links: 2},
		"empty":     {mode: unix.S_IFREG | 0o644, links: 1},
	} {
		var s unix.Stat_t
		require.NoError(t, unix.Lstat(filepath.Join(dir, name), &s), name)
		require.Equal(t, e, expected{s.Mode, s.Uid, s.Gid, s.Nlink, s.Size, s.Rdev}, name)
		require.Equal(t, unix.NsecToTimespec(someTime.UnixNano()), s.Mtim, name)
		require.Equal(t, (e.size+511)/512, s.Blocks, name)
	}
	target, err := os.Readlink(filepath.Join(dir, "link"))
	require.NoError(t, err)
	require.Equal(t, "bin/su", target)
	require.Equal(t, "program", read(t, dir, "link"))
	require.Empty(t, read(t, dir, "empty"))

	su, err := os.Stat(filepath.Join(dir, "bin/su"))
	require.NoError(t, err)
	again, err := os.Stat(filepath.Join(dir, "bin/again"))
	require.NoError(t, err)
	require.True(t, os.SameFile(su, again))
}

// TestReadOnly tries to change things, and asks for what is not there.
func TestReadOnly(t *testing.T) {
	dir := mounted(t, layerOf(file("file", "content")), Options{})
	require.ErrorIs(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o600), unix.EROFS)
	require.ErrorIs(t, os.WriteFile(filepath.Join(dir, "file"), []byte("other"), 0o600), unix.EROFS)
	require.ErrorIs(t, os.Remove(filepath.Join(dir, "file")), unix.EROFS)
	require.ErrorIs(t, os.Mkdir(filepath.Join(dir, "dir"), 0o700), unix.EROFS)
	require.ErrorIs(t, os.Chmod(filepath.Join(dir, "file"), 0o700), unix.EROFS)
	for range 2 { // the second time from memory
		_, err := os.Stat(filepath.Join(dir, "missing"))
		require.ErrorIs(t, err, os.ErrNotExist)
		_, err = os.Stat(filepath.Join(dir, "file", "below"))
		require.ErrorIs(t, err, unix.ENOTDIR)
	}
	_, err := os.Stat(filepath.Join(dir, probeName))
	require.ErrorIs(t, err, os.ErrNotExist)

	var s unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &s))
	require.EqualValues(t, unix.NAME_MAX, s.Namelen)
	require.EqualValues(t, 2, s.Files)
	require.Zero(t, s.Bfree)
}

// TestLargeDirectory lists one that takes many answers, goes back in it, and
// asks for each name.
func TestLargeDirectory(t *testing.T) {
	const files = 20000
	parts := []part{dir("many")}
	var expected []string
	for i := range files {
		name := fmt.Sprintf("a name of some length %05d", i)
		expected = append(expected, name)
		parts = append(parts, file("many/"+name, name))
	}
	dir := filepath.Join(mounted(t, layerOf(parts...), Options{}), "many")
	for range 2 {
		require.Equal(t, expected, names(t, dir))
	}
	f, err := os.Open(dir)
	require.NoError(t, err)
	defer f.Close()
	some, err := f.Readdirnames(files / 2)
	require.NoError(t, err)
	_, err = f.Seek(0, 0)
	require.NoError(t, err)
	again, err := f.Readdirnames(files / 2)
	require.NoError(t, err)
	require.Equal(t, some, again)
	for i := 0; i < files; i += 97 {
		require.Equal(t, expected[i], read(t, dir, expected[i]))
	}
}

// TestForgets has the kernel forget all and ask again.
func TestForgets(t *testing.T) {
	dir := mounted(t, layerOf(dir("a"), dir("a/b"), file("a/b/file", "content"), symlink("link", "a/b/file")), Options{})
	for range 3 {
		require.Equal(t, "content", read(t, dir, "link"))
		require.Equal(t, []string{"a", "link"}, names(t, dir))
		forget(t)
	}
}
