package main

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
)

// layerOf is what the stock library makes of files with as many bytes as their
// names, some of them first.
func layerOf(t *testing.T, first []string, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range names {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(name))}))
		_, err := io.WriteString(w, name)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(b.Bytes()), 0, int64(b.Len())), estargz.WithPrioritizedFiles(first))
	require.NoError(t, err)
	raw, err := io.ReadAll(blob)
	require.NoError(t, err)
	require.NoError(t, blob.Close())
	return raw
}

func TestSide(t *testing.T) {
	s := side{first: map[file]int64{}, landmarks: map[digest.Digest]int64{}}
	require.NoError(t, s.readLayer(0, ocispecs.Descriptor{Digest: "x"}, layerOf(t, []string{"ccc", "a"}, "a", "bb", "ccc")))
	require.NoError(t, s.readLayer(1, ocispecs.Descriptor{Digest: "y"}, layerOf(t, nil, "a")))
	require.Equal(t, map[file]int64{{"a", 0}: 1, {"ccc", 0}: 3}, s.first)
	require.Len(t, s.landmarks, 1)
	require.Positive(t, s.landmarks["x"])
	require.Equal(t, []reading{{float64(s.landmarks["x"]), "B-first"}, {4, "B-uncompressed"}, {2, "files-first"}}, s.readings())

	name := filepath.Join(t.TempDir(), "record")
	require.NoError(t, os.WriteFile(name, []byte(strings.Repeat(`{"path":"a","layerIndex":0}{"path":"a","layerIndex":1}`, 2)), 0o600))
	recorded, err := readRecord(name)
	require.NoError(t, err)
	require.Len(t, recorded, 2)
	require.Equal(t, []file{{"a", 1}}, s.without(recorded))
}

// Of the layers that which took most requests counts, and of these those that
// ask for what lies in front of the landmark.
func TestPrefetches(t *testing.T) {
	get := func(blob, ranges string) shaped.Request { return shaped.Request{Blob: blob, Range: ranges} }
	s := side{landmarks: map[digest.Digest]int64{"a": 100, "b": 100}}
	require.Equal(t, 2, s.prefetches([]shaped.Request{
		get("a", "bytes=0-1"), get("a", "bytes=200-299"), get("a", "bytes=0-99"),
		get("b", "bytes=0-1"), get("b", "bytes=0-49"), get("b", "bytes=50-99"), get("b", "bytes=100-149"),
		get("c", "bytes=0-99"), get("config", ""),
	}))
}
