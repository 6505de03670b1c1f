package integration

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/pushed"
)

// prioritized returns the files in front of the landmark, layer by layer.
func prioritized(t *testing.T, image *pushed.Image) (layers []string) {
	t.Helper()
	for _, desc := range image.Manifest.Layers {
		if desc.Annotations["containerd.io/snapshot/stargz/toc.digest"] == "" {
			layers = append(layers, "no eStargz")
			continue
		}
		blob, err := image.Blob(t.Context(), desc)
		require.NoError(t, err)
		unpacked, err := pushed.Unpack(blob)
		require.NoError(t, err)
		layers = append(layers, beforeLandmark(t, unpacked))
	}
	return layers
}

// beforeLandmark joins the names of regular files.
func beforeLandmark(t *testing.T, layer []byte) string {
	t.Helper()
	var names []string
	for h := range entries(t, layer) {
		switch {
		case h.Name == prefetchLandmark:
			return strings.Join(names, " ")
		case h.Name == noPrefetchLandmark:
			require.Empty(t, names)
			return "nothing"
		case h.Typeflag == tar.TypeReg:
			names = append(names, h.Name)
		}
	}
	return "no landmark"
}

const (
	prefetchLandmark   = ".prefetch.landmark"
	noPrefetchLandmark = ".no.prefetch.landmark"
)

// entries goes through a tar.
func entries(t *testing.T, layer []byte) func(yield func(*tar.Header, io.Reader) bool) {
	t.Helper()
	return func(yield func(*tar.Header, io.Reader) bool) {
		for r := tar.NewReader(bytes.NewReader(layer)); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			require.NoError(t, err)
			if !yield(h, r) {
				return
			}
		}
	}
}

// requireRead checks which files of the topmost layers come first.
func requireRead(t *testing.T, image string, want []string) {
	t.Helper()
	requireEStargz(t, image)
	layers := prioritized(t, onlyImage(t, image))
	require.Equal(t, want, layers[len(layers)-len(want):])
	require.Contains(t, layers[0], "busybox", "what runs is read")
}

// requireOnlyOrdered compares an image to the one of the same build without a
// profile: both have the same entries and the same config, but for what follows
// from the order.
func requireOnlyOrdered(t *testing.T, plain, ordered string) {
	t.Helper()
	want, got := onlyImage(t, plain), onlyImage(t, ordered)
	requireSame(t, contents(t, want), contents(t, got))
	require.Equal(t, configWithoutLayers(t, want), configWithoutLayers(t, got))
	require.Equal(t, want.Manifest.Annotations, got.Manifest.Annotations)
}

// contents has a line for each entry of each layer, with all that a tar says of
// it. The landmarks are left out.
func contents(t *testing.T, image *pushed.Image) string {
	t.Helper()
	var lines strings.Builder
	for i, desc := range image.Manifest.Layers {
		blob, err := image.Blob(t.Context(), desc)
		require.NoError(t, err)
		layer, err := pushed.Unpack(blob)
		require.NoError(t, err)
		writeEntries(t, &lines, i, layer)
	}
	return lines.String()
}

// writeEntries writes the lines of one layer, the n-th.
func writeEntries(t *testing.T, lines *strings.Builder, n int, layer []byte) {
	t.Helper()
	for h, content := range entries(t, layer) {
		if h.Name == prefetchLandmark || h.Name == noPrefetchLandmark {
			continue
		}
		sum, err := digest.FromReader(content)
		require.NoError(t, err)
		fmt.Fprintf(lines, "layer %d: %q type=%c mode=%o owner=%d:%d (%s:%s) size=%d time=%s link=%q device=%d:%d xattrs=%q %s\n",
			n, h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Uname, h.Gname, h.Size, h.ModTime, h.Linkname, h.Devmajor, h.Devminor, h.PAXRecords, sum)
	}
}

// configWithoutLayers is all that the config says but for its diffIDs.
func configWithoutLayers(t *testing.T, image *pushed.Image) map[string]any {
	t.Helper()
	raw, err := image.Blob(t.Context(), image.Manifest.Config)
	require.NoError(t, err)
	var config map[string]any
	require.NoError(t, json.Unmarshal(raw, &config))
	delete(config, "rootfs")
	return config
}
