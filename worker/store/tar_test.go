package store

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// A tarEntry is one entry of a test tar.
type tarEntry struct {
	tar.Header
	contents string
}

func file(name, contents string) tarEntry {
	return tarEntry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(contents))}, contents}
}

func dir(name string) tarEntry {
	return tarEntry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}

func symlink(name, target string) tarEntry {
	return tarEntry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func link(name, target string) tarEntry {
	return tarEntry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}}
}

func device(kind byte, name string, major, minor int64) tarEntry {
	return tarEntry{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor}}
}

func (e tarEntry) with(change func(h *tar.Header)) tarEntry {
	change(&e.Header)
	return e
}

func owner(uid, gid int) func(h *tar.Header) {
	return func(h *tar.Header) { h.Uid, h.Gid = uid, gid }
}

func xattr(name, value string) func(h *tar.Header) {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
}

func tarOf(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		require.NoError(t, w.WriteHeader(&e.Header))
		_, err := io.WriteString(w, e.contents)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// text is n bytes that compress as text does, the same for the same seed.
func text(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = append(strconv.AppendUint(b, uint64(r.IntN(4096)), 16), ' ')
	}
	return string(b[:n])
}

// A testBlob is an eStargz blob.
type testBlob struct {
	key  Key
	data []byte
}

func (b *testBlob) size() int64 { return int64(len(b.data)) }

func blobOf(t testing.TB, opts estargz.Options, entries ...tarEntry) *testBlob {
	t.Helper()
	return convert(t, opts, tarOf(t, entries...))
}

// orderedBlob has the named files first.
func orderedBlob(t testing.TB, order []string, opts estargz.Options, entries ...tarEntry) *testBlob {
	t.Helper()
	unordered := blobOf(t, opts, entries...)
	r, err := estargz.Open(bytes.NewReader(unordered.data), int64(len(unordered.data)), estargz.OpenOptions{})
	require.NoError(t, err)
	var b bytes.Buffer
	info, err := estargz.Reorder(context.Background(), &b, r, order, opts)
	require.NoError(t, err)
	return &testBlob{key: Key{Blob: info.Digest, TOC: info.TOCDigest}, data: b.Bytes()}
}

func convert(t testing.TB, opts estargz.Options, tar []byte) *testBlob {
	t.Helper()
	var b bytes.Buffer
	info, err := estargz.Write(context.Background(), &b, bytes.NewReader(tar), opts)
	require.NoError(t, err)
	return &testBlob{key: Key{Blob: info.Digest, TOC: info.TOCDigest}, data: b.Bytes()}
}

func openStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.TempDir(), Options{})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.Empty(t, s.flights.by)
		require.True(t, s.buffers.TryAcquire(maxBuffers), "a buffer was not given back")
	})
	return s
}

func (b *testBlob) addTo(s *Store) error {
	return s.Add(context.Background(), b.key, b.size(), b.data, nil)
}

func addedTo(t testing.TB, s *Store, b *testBlob) *Layer {
	t.Helper()
	require.NoError(t, b.addTo(s))
	l, err := s.Layer(b.key)
	require.NoError(t, err)
	return l
}
