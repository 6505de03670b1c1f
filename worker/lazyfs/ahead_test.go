package lazyfs

import (
	"archive/tar"
	"bytes"
	"os"
	"testing"
	"testing/synctest"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

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
	// Ours leaves replaced files out of the TOC.
	z := estargz.NewWriter(&blob)
	require.NoError(t, z.AppendTar(&p))
	toc, err := z.Close()
	require.NoError(t, err)
	s, err := store.Open(t.TempDir(), store.Options{})
	require.NoError(t, err)
	defer s.Close()
	key := store.Key{Blob: digest.FromBytes(blob.Bytes()), TOC: toc}
	require.NoError(t, s.Add(t.Context(), key, int64(blob.Len()), blob.Bytes(), nil))
	layer, err := s.Layer(key)
	require.NoError(t, err)

	a := newAhead(layer, func(run func()) { run() }, func([]byte) error { return nil })
	for n := range store.Node(layer.Nodes()) {
		_, ok := a.put(n)
		require.Equal(t, layer.Attr(n).Size == 0 || layer.Readlink(n) != "", ok, "contents that are not here end it")
	}
}

// TestCutWaitsForNotices ends a connection while the kernel is being told of
// contents. Until it was told, reads can be answered.
func TestCutWaitsForNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		device, other, err := os.Pipe()
		require.NoError(t, err)
		defer other.Close()
		c := newConn(device, newFilesystem(layerOf(file("a", "x"), file("b", "x")), Options{}))
		told := make(chan struct{})
		c.ahead.notify = func([]byte) error { <-told; return nil }
		c.ahead.read(1)
		synctest.Wait()
		reading := c.wait(c.reads.begin(&fuse.InHeader{Unique: 1}))
		cut := make(chan struct{})
		go func() { c.cut(); close(cut) }()
		synctest.Wait()
		require.Error(t, reading.Err())
		require.NoError(t, c.raw.Control(func(uintptr) {}))
		close(told)
		<-cut
		require.Error(t, c.raw.Control(func(uintptr) {}))
	})
}
