package lazy

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// Where a layer came from is known although its index cannot be read any more, so that
// results built on it are found, and a build that uses it brings another index.
func TestOriginWithoutIndex(t *testing.T) {
	p := servePrivate(t, 3)
	p.set("right", true, true)
	l := p.open(t, Config{})
	require.NoError(t, p.fetch(t, l, "right"))
	require.NoError(t, l.Close())
	indexes, err := filepath.Glob(filepath.Join(p.root, "layers", "layers", "*", "index"))
	require.NoError(t, err)
	require.Len(t, indexes, 1)
	require.NoError(t, os.Truncate(indexes[0], 1))

	l = p.open(t, Config{})
	id, err := l.ID(p.labels(""))
	require.NoError(t, err)
	dir, blob := t.TempDir(), digest.FromBytes(p.blob)
	require.ErrorContains(t, l.Mount(id, dir, p.labels("")), "the index is damaged")
	origin, ok := l.Origin(blob)
	require.True(t, ok)
	require.Equal(t, p.labels("")[refLabel], origin.Ref)
	require.NoError(t, l.Announce(t.Context(), p.labels("right")))
	require.NoError(t, l.Fetch(t.Context(), id))
	to := t.TempDir()
	require.NoError(t, l.Unpack(t.Context(), id, to, p.labels("")))
	got, err := os.ReadFile(filepath.Join(to, "file-2"))
	require.NoError(t, err)
	require.Equal(t, contentsOf(2), got)

	require.NoError(t, l.Unmount(dir))
	_, ok = l.Origin(blob)
	require.False(t, ok)
	require.Empty(t, l.mounted)
	require.Empty(t, l.blobs)
}
