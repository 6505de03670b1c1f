package lazy

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/snapshot"
)

// unmountable opens a layer that was fetched and announced, and cannot be mounted. It
// returns its ID and the directory of which Mount was called.
func unmountable(t *testing.T, p *private) (l *Layers, id, dir string) {
	t.Helper()
	l = p.open(t, Config{})
	p.set("right", true, true)
	require.NoError(t, p.fetch(t, l, "right"))
	id, err := l.ID(p.labels(""))
	require.NoError(t, err)
	dir = filepath.Join(t.TempDir(), "none")
	require.NoError(t, l.Announce(t.Context(), p.labels("right")))
	require.Error(t, l.Mount(id, dir, p.labels("")))
	return l, id, dir
}

// Unpacking needs the credentials of the builds to which a layer was announced before
// it turned out that it cannot be mounted.
func TestUnpackAnnounced(t *testing.T) {
	p := servePrivate(t, 3)
	l, id, dir := unmountable(t, p)
	to := t.TempDir()
	require.NoError(t, l.Unpack(t.Context(), id, to, p.labels("")))
	got, err := os.ReadFile(filepath.Join(to, "file-2"))
	require.NoError(t, err)
	require.Equal(t, contentsOf(2), got)
	require.NoError(t, l.Unmount(dir))
	require.Empty(t, l.mounted)
	require.Empty(t, l.blobs)
}

// A layer that is unpacked upon one layer is not for that reason here upon another:
// what is missing there is fetched with the credentials of the build that uses it.
func TestAnnounceUnpackedElsewhere(t *testing.T) {
	p := servePrivate(t, 3)
	l, id, dir := unmountable(t, p)
	unpacked := t.TempDir()
	require.NoError(t, l.Unpack(t.Context(), id, unpacked, p.labels("")))
	require.NoError(t, l.Mount(id, unpacked, p.labels("")))
	require.NoError(t, l.Unmount(dir)) // with the places of its builds
	require.NoError(t, l.Remove(id))

	p.set("second", true, true)
	require.NoError(t, p.fetch(t, l, "second"))
	require.Error(t, l.Mount(id, dir, p.labels("")))
	p.set("wrong", false, true)
	labels := p.labels("wrong")
	require.ErrorContains(t, l.Announce(t.Context(), labels), "401 Unauthorized")
	labels[snapshot.UnpackedLabel] = "true"
	require.NoError(t, l.Announce(t.Context(), labels), "what is unpacked needs no registry")
	require.NoError(t, l.Announce(t.Context(), p.labels("second")))
	require.NoError(t, l.Unpack(t.Context(), id, t.TempDir(), p.labels("")))
}
