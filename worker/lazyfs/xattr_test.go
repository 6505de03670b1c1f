package lazyfs

import (
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

// TestNoXattrs is about a layer without any: programs that list them get none,
// and no error.
func TestNoXattrs(t *testing.T) {
	dir := mounted(t, layerOf(file("file", "")), Options{})
	require.Empty(t, listXattrs(t, dir, "file"))
	_, err := unix.Lgetxattr(filepath.Join(dir, "file"), "user.any", nil)
	require.ErrorIs(t, err, unix.EOPNOTSUPP)
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
