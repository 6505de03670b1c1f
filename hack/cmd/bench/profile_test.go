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
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
)

// layerOf is what the stock library makes of files with as many bytes as their
// names, some of them first.
func layerOf(t *testing.T, first []string, names ...string) layer {
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
	l, err := readLayer(raw)
	require.NoError(t, err)
	return l
}

func TestReadLayer(t *testing.T) {
	l := layerOf(t, []string{"ccc", "a"}, "a", "bb", "ccc")
	require.Equal(t, map[string]int64{"a": 1, "ccc": 3}, l.prioritized)
	require.Equal(t, map[string]int64{"a": 1, "bb": 2, "ccc": 3}, l.sizes)
	require.EqualValues(t, 4, l.uncompressed)
	require.Positive(t, l.landmark)

	l = layerOf(t, nil, "a")
	require.Empty(t, l.prioritized)
	require.Zero(t, l.landmark)
}

func TestDifferences(t *testing.T) {
	file := filepath.Join(t.TempDir(), "record")
	require.NoError(t, os.WriteFile(file, []byte(strings.Repeat(`{"path":"a","layerIndex":0}{"path":"bb","layerIndex":1}`, 2)), 0o600))
	recorded, err := readRecord(file)
	require.NoError(t, err)
	s := &subject{
		recorded: recorded,
		ours:     side{layers: []layer{layerOf(t, []string{"a"}, "a"), layerOf(t, []string{"a"}, "a", "bb")}},
		theirs:   side{layers: []layer{layerOf(t, []string{"a"}, "a"), layerOf(t, []string{"bb"}, "a", "bb")}},
	}
	require.Equal(t, []string{"layer 1 bb, 2 bytes"}, s.missing())
	require.Equal(t, []string{"layer 1 a, 1 bytes"}, s.extra())
}

// Of the layers that which took most requests counts, and of these those that
// ask for what lies in front of the landmark.
func TestPrefetches(t *testing.T) {
	get := func(blob, ranges string) shaped.Request { return shaped.Request{Blob: blob, Range: ranges} }
	s := side{
		layers: []layer{{digest: "a", landmark: 100}, {digest: "b", landmark: 100}, {digest: "c"}},
		starts: []start{{requests: []shaped.Request{
			get("a", "bytes=0-1"), get("a", "bytes=200-299"), get("a", "bytes=0-99"),
			get("b", "bytes=0-1"), get("b", "bytes=0-49"), get("b", "bytes=50-99"), get("b", "bytes=100-149"),
			get("c", "bytes=0-99"), get("config", ""),
		}}},
	}
	require.Equal(t, 2, s.prefetches(s.starts[0]))
}
