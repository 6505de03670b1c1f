package lazyfs

import (
	"archive/tar"
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// TestReadAheadOfReplaced reads ahead past a file that a symlink replaced.
func TestReadAheadOfReplaced(t *testing.T) {
	var p, blob bytes.Buffer
	w := tar.NewWriter(&p)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeReg, Name: "a", Size: 1},
		{Typeflag: tar.TypeReg, Name: "b", Size: 1},
		{Typeflag: tar.TypeSymlink, Name: "b", Linkname: "a"},
	} {
		require.NoError(t, w.WriteHeader(&h))
		_, err := w.Write([]byte("x")[:h.Size])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	info, err := estargz.Write(t.Context(), &blob, &p, estargz.Options{})
	require.NoError(t, err)
	s, err := store.Open(t.TempDir(), store.Options{})
	require.NoError(t, err)
	defer s.Close()
	key := store.Key{Blob: info.Digest, TOC: info.TOCDigest}
	require.NoError(t, s.Add(t.Context(), key, info.Size, blob.Bytes(), nil))
	layer, err := s.Layer(key)
	require.NoError(t, err)

	a := newAhead(layer, func(run func()) { run() }, func([]byte) error { return nil })
	for n := range store.Node(layer.Nodes()) {
		_, ok := a.put(n)
		require.Equal(t, layer.Attr(n).Size == 0 || layer.Readlink(n) != "", ok, "contents that are not here end it")
	}
}
