package estargz_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"strings"
	"testing"

	stock "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

func reorder(t testing.TB, blob []byte, order []string, opts estargz.Options) ([]byte, *estargz.Info) {
	t.Helper()
	var b bytes.Buffer
	info, err := estargz.Reorder(context.Background(), &b, open(t, blob), order, opts)
	require.NoError(t, err)
	return b.Bytes(), info
}

// TestReorder: a blob in another order is the very blob's tar in that order,
// whoever wrote the blob.
func TestReorder(t *testing.T) {
	original := ordinary()
	order := []string{"usr/bin/su2", "etc/passwd", "usr/bin/large", "usr/share/doc/0100", "etc/shadow", "nowhere"}

	plain, _ := write(t, original, estargz.Options{})
	chunked, _ := write(t, original, estargz.Options{ChunkSize: 1 << 20})
	shared, _ := write(t, original, estargz.Options{MinChunkSize: 50_000})
	stored, _ := write(t, original, estargz.Options{Level: estargz.NoCompression})
	twice, _ := reorder(t, plain, []string{"dev/null", "etc/shadow"}, estargz.Options{})
	back, _ := reorder(t, twice, []string{}, estargz.Options{})
	var b bytes.Buffer
	w := stock.NewWriterLevel(&b, 6)
	require.NoError(t, w.AppendTarLossLess(bytes.NewReader(original)))
	_, err := w.Close()
	require.NoError(t, err)

	for name, blob := range map[string][]byte{
		"plain": plain, "chunked": chunked, "shared": shared, "stored": stored, "reordered": back, "stock": b.Bytes(),
	} {
		t.Run(name, func(t *testing.T) {
			want, err := estargz.OrderTar(unpack(t, blob), order)
			require.NoError(t, err)
			got, info := reorder(t, blob, order, estargz.Options{})
			require.True(t, bytes.Equal(want, unpack(t, got)), "another tar")
			checkBlob(t, want, got, info)
			theirs := stockOpen(t, got)
			_, err = theirs.VerifyTOC(info.TOCDigest)
			require.NoError(t, err)
			agree(t, got, open(t, got), theirs)

			again, _ := reorder(t, blob, order, estargz.Options{Pool: estargz.NewPool(1, 1)})
			require.True(t, bytes.Equal(got, again), "another blob the second time")
		})
	}
}

// TestReorderKeepsCompressedContents: what is costly was done before.
func TestReorderKeepsCompressedContents(t *testing.T) {
	blob, _ := write(t, ordinary(), estargz.Options{Level: 9})
	got, _ := reorder(t, blob, []string{"usr/bin/noise", "usr/bin/large", "etc/passwd"}, estargz.Options{Level: 1})
	before, after := open(t, blob), open(t, got)
	for _, e := range before.Entries() {
		if e.Size < 10_000 {
			continue
		}
		moved, ok := after.Lookup(e.Name)
		require.True(t, ok)
		const n = 1000 // the least that 10,000 bytes compress to here
		require.Equal(t, blob[e.Offset:][:n], got[moved.Offset:][:n], e.Name)
	}
	require.InDelta(t, len(blob), len(got), float64(len(blob))/100)
}

func TestReorderRefusesDamage(t *testing.T) {
	for minChunk, want := range map[int64]string{0: "member at", 50_000: "gzip"} {
		blob, _ := write(t, ordinary(), estargz.Options{MinChunkSize: minChunk})
		e, _ := open(t, blob).Lookup("usr/bin/noise")
		for _, at := range []int64{e.Offset + 3, e.Offset + 100, (e.Offset + e.MemberEnd()) / 2, e.MemberEnd() - 6} {
			damaged := bytes.Clone(blob)
			damaged[at] ^= 0x20
			_, err := estargz.Reorder(context.Background(), io.Discard, open(t, damaged), []string{"etc/passwd"}, estargz.Options{})
			require.ErrorContains(t, err, want)
		}
	}
}

// TestReorderWithoutReplaced: what a later entry replaces is in no TOC, and may
// be larger than what stands between contents otherwise.
func TestReorderWithoutReplaced(t *testing.T) {
	for _, size := range []int{5000, 65 << 20} {
		original := tarOf(t, file("a", "a"), file("b", text(1, 3000)), file("b", strings.Repeat("0", size)), file("b", "new"), file("c", "c"))
		blob, _ := write(t, original, estargz.Options{Level: 1})
		got, info := reorder(t, blob, []string{"c"}, estargz.Options{})
		want, err := estargz.OrderTar(original, []string{"c"})
		require.NoError(t, err)
		checkBlob(t, want, got, info)
	}
}

// BenchmarkHash is the pass that another order cannot do without: its diffID is
// another.
func BenchmarkHash(b *testing.B) {
	input := benchTar(b)
	b.SetBytes(int64(len(input)))
	for b.Loop() {
		sha256.Sum256(input)
	}
}

// BenchmarkInflate is what comes on top on one processor: what is to be hashed
// has to be decompressed.
func BenchmarkInflate(b *testing.B) {
	input := benchTar(b)
	blob, _ := write(b, input, estargz.Options{})
	b.SetBytes(int64(len(input)))
	for b.Loop() {
		z, err := gzip.NewReader(bytes.NewReader(blob))
		require.NoError(b, err)
		_, err = io.Copy(io.Discard, z)
		require.NoError(b, err)
	}
}

func BenchmarkReorder(b *testing.B) {
	input := benchTar(b)
	blob, _ := write(b, input, estargz.Options{})
	b.SetBytes(int64(len(input)))
	pool := estargz.NewPool(0, 0)
	for b.Loop() {
		_, err := estargz.Reorder(context.Background(), io.Discard, open(b, blob), []string{"etc/passwd"}, estargz.Options{Pool: pool})
		require.NoError(b, err)
	}
}

// TestReorderLandmark: a landmark of an earlier order is a file of an unpacked
// layer, which a workload may read.
func TestReorderLandmark(t *testing.T) {
	plain, _ := write(t, tarOf(t, file("a", "a"), file("b", "b")), estargz.Options{})
	for _, first := range [][]string{{"b"}, {}} {
		ordered, _ := reorder(t, plain, first, estargz.Options{})
		again, _ := reorder(t, ordered, []string{"/.prefetch.landmark", ".no.prefetch.landmark", "b"}, estargz.Options{})
		want, _ := reorder(t, plain, []string{"b"}, estargz.Options{})
		require.Equal(t, want, again)
	}
}
