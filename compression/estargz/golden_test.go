package estargz_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	stock "github.com/containerd/stargz-snapshotter/estargz"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

var rewriteGolden = flag.Bool("golden", false, "rewrite testdata/golden.json")

// TestGolden compares the digests of what is written with those of before. A
// dependency whose new version compresses to other bytes changes the digests of
// all images: that must not happen unnoticed.
func TestGolden(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	const name = "testdata/golden.json"
	got := map[string]*estargz.Info{}
	for input, tar := range map[string][]byte{
		"ordinary": ordinary(),
		"empty":    tarOf(t),
		"large":    tarOf(t, file("a", text(1, 4<<20+5)), file("b", noise(2, 100_000)), dir("d")),
	} {
		for options, opts := range map[string]estargz.Options{
			"defaults":     {},
			"level 1":      {Level: 1},
			"level 9":      {Level: 9},
			"stored":       {Level: estargz.NoCompression},
			"small chunks": {ChunkSize: 100_000},
			"shared":       {MinChunkSize: 50_000},
		} {
			blob, info := write(t, tar, opts)
			got[input+", "+options] = info
			_, got[input+", "+options+", ordered"] = reorder(t, blob, []string{"b", "usr/bin/su2", "etc/passwd"}, opts)
		}
	}
	if *rewriteGolden {
		p, err := json.MarshalIndent(got, "", "\t")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(name, append(p, '\n'), 0o644))
	}
	p, err := os.ReadFile(name)
	require.NoError(t, err)
	var want map[string]*estargz.Info
	require.NoError(t, json.Unmarshal(p, &want))
	require.Equal(t, want, got, "go test -run TestGolden -golden rewrites the digests, if they are to change")
}

// TestTOCEndsWithItsJSON: the stock library hashes what its JSON decoder has
// read, which is not always what follows the last brace.
func TestTOCEndsWithItsJSON(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	for n := range 1500 { // past two sizes of the decoder's buffer, byte by byte
		blob, info := write(t, tarOf(t, dir(strings.Repeat("a", n+1))), estargz.Options{Level: 1})
		r, err := stock.Open(section(blob))
		require.NoError(t, err)
		require.Equal(t, info.TOCDigest, r.TOCDigest(), "a name of %d bytes", n+1)
	}
}

// TestTOCDigestIsOfAll: whatever stands behind the JSON belongs to the TOC, and
// its digest does not depend on how much of it a decoder happened to read.
func TestTOCDigestIsOfAll(t *testing.T) {
	for _, n := range []int{0, 1, 1000, 300 << 10} {
		toc := `{"version":1,"entries":[{"name":"d","type":"dir"}]}` + string(bytes.Repeat([]byte("\n"), n))
		blob := withTOC(t, nil, toc)
		r := open(t, blob)
		require.Equal(t, digest.FromString(toc), r.TOCDigest())
	}
}
