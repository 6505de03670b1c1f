package lazyfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestXattrs(t *testing.T) {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	dir := mounted(t, layerOf(
		file("ping", "program"), xattr("ping", "security.capability", capability), xattr("ping", "user.large", strings.Repeat("x", 4000)),
		file("plain", ""),
		symlink("link", "ping"), xattr("link", "trusted.note", "of the link"),
	), Options{})

	require.Equal(t, capability, getXattr(t, dir, "ping", "security.capability"))
	require.Equal(t, strings.Repeat("x", 4000), getXattr(t, dir, "ping", "user.large"))
	require.ElementsMatch(t, []string{"security.capability", "user.large"}, listXattrs(t, dir, "ping"))
	require.Equal(t, "of the link", getXattr(t, dir, "link", "trusted.note"))
	require.Empty(t, listXattrs(t, dir, "plain"))
	_, err := unix.Lgetxattr(filepath.Join(dir, "plain"), "user.large", nil)
	require.ErrorIs(t, err, unix.ENODATA)
	_, err = unix.Lgetxattr(filepath.Join(dir, "ping"), "user.large", make([]byte, 10))
	require.ErrorIs(t, err, unix.ERANGE)
	_, err = unix.Llistxattr(filepath.Join(dir, "ping"), make([]byte, 10))
	require.ErrorIs(t, err, unix.ERANGE)
}

// TestNoXattrs asks for what is not there, through an overlay: of a layer
// without xattrs, and of one with some elsewhere. The answers are those of an
// unpacked layer.
func TestNoXattrs(t *testing.T) {
	unpacked := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(unpacked, "file"), nil, 0o644))
	require.NoError(t, os.Mkdir(filepath.Join(unpacked, "dir"), 0o755))
	without := []part{file("file", ""), dir("dir")}
	elsewhere := append([]part{file("other", ""), xattr("other", "user.any", "1")}, without...)
	want := overlaid(t, "", unpacked)
	for name, layer := range map[string]*fake{"without": layerOf(without...), "elsewhere": layerOf(elsewhere...)} {
		t.Run(name, func(t *testing.T) {
			got := overlaid(t, "", mounted(t, layer, Options{}))
			for _, file := range []string{"file", "dir"} {
				for _, key := range []string{"user.any", "trusted.any", "security.capability", "system.posix_acl_access", "system.posix_acl_default"} {
					require.Equal(t, absent(want, file, key), absent(got, file, key), "%s of the %s", key, file)
				}
			}
		})
	}
}

// absent is what a file answers to who asks for an xattr that it has not, lists
// them, and removes it.
func absent(dir, name, key string) (errs [3]error) {
	path := filepath.Join(dir, name)
	_, errs[0] = unix.Lgetxattr(path, key, nil)
	_, errs[1] = unix.Llistxattr(path, nil)
	errs[2] = unix.Lremovexattr(path, key)
	return errs
}

// TestOverlayXattrs is about those that overlayfs takes for its own: a layer
// cannot bring them, but opaque directories have the one that says so, in the
// form of the overlay above.
func TestOverlayXattrs(t *testing.T) {
	layer := layerOf(
		opaqueDir("opaque"),
		dir("dir"), xattr("dir", "trusted.overlay.redirect", "/etc"), xattr("dir", "trusted.overlay.opaque", "y"),
		file("file", ""), xattr("file", "trusted.overlay.metacopy", ""), xattr("file", "user.mine", "1"),
	)
	dir := mounted(t, layer, Options{})
	require.Equal(t, "y", getXattr(t, dir, "opaque", "trusted.overlay.opaque"))
	require.Equal(t, []string{"trusted.overlay.opaque"}, listXattrs(t, dir, "opaque"))
	require.Empty(t, listXattrs(t, dir, "dir"))
	require.Equal(t, []string{"user.mine"}, listXattrs(t, dir, "file"))
	for _, name := range []string{"redirect", "opaque"} {
		_, err := unix.Lgetxattr(filepath.Join(dir, "dir"), "trusted.overlay."+name, nil)
		require.ErrorIs(t, err, unix.ENODATA)
	}

	user := mounted(t, layer, Options{UserXattr: true})
	require.Equal(t, []string{"user.overlay.opaque"}, listXattrs(t, user, "opaque"))
}

func getXattr(t *testing.T, dir, name, key string) string {
	value := make([]byte, 8192)
	n, err := unix.Lgetxattr(filepath.Join(dir, name), key, value)
	require.NoError(t, err)
	asked, err := unix.Lgetxattr(filepath.Join(dir, name), key, nil)
	require.NoError(t, err)
	require.Equal(t, n, asked)
	return string(value[:n])
}

func listXattrs(t *testing.T, dir, name string) []string {
	list := make([]byte, 8192)
	n, err := unix.Llistxattr(filepath.Join(dir, name), list)
	require.NoError(t, err)
	if n == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00")
}
