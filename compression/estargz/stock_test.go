package estargz_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"testing"

	stock "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/externaltoc"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// agree compares our reader with the one of stargz-snapshotter, entry by entry.
func agree(t *testing.T, blob []byte, ours *estargz.Reader, theirs *stock.Reader) {
	t.Helper()
	require.Equal(t, theirs.TOCDigest(), ours.TOCDigest())
	seen := 0
	var walk func(name string, want *stock.TOCEntry)
	walk = func(name string, want *stock.TOCEntry) {
		seen++
		e, ok := ours.Lookup(name)
		require.True(t, ok, name)
		requireSame(t, name, want, e)
		if want.Type == "reg" {
			requireSameContents(t, name, want, ours, theirs)
		}
		children := ours.Children(name)
		n := 0
		want.ForeachChild(func(base string, child *stock.TOCEntry) bool {
			n++
			require.Contains(t, children, base)
			path := base
			if name != "" {
				path = name + "/" + base
			}
			walk(path, child)
			return true
		})
		require.Len(t, children, n, name)
	}
	root, ok := theirs.Lookup("")
	require.True(t, ok)
	walk("", root)
	require.Positive(t, seen)
}

func requireSame(t *testing.T, name string, want *stock.TOCEntry, e *estargz.Entry) {
	t.Helper()
	xattrs := want.Xattrs
	if len(xattrs) == 0 {
		xattrs = nil
	}
	require.Equal(t, &estargz.Entry{
		Name: want.Name, Type: want.Type, Size: want.Size, ModTime: want.ModTime(),
		LinkName: want.LinkName, Mode: want.Mode, UID: want.UID, GID: want.GID,
		Uname: want.Uname, Gname: want.Gname, DevMajor: want.DevMajor, DevMinor: want.DevMinor,
		Xattrs: xattrs, Digest: digest.Digest(want.Digest),
		Offset: want.Offset, InnerOffset: want.InnerOffset,
		ChunkOffset: want.ChunkOffset, ChunkSize: want.ChunkSize, ChunkDigest: digest.Digest(want.ChunkDigest),
	}, estargz.WithoutMemberEnd(e), name)
}

func requireSameContents(t *testing.T, name string, want *stock.TOCEntry, ours *estargz.Reader, theirs *stock.Reader) {
	t.Helper()
	for _, c := range ours.Chunks(name) {
		w, ok := theirs.ChunkEntryForOffset(name, c.ChunkOffset)
		require.True(t, ok)
		require.Equal(t, []int64{w.Offset, w.InnerOffset, w.ChunkOffset, w.ChunkSize}, []int64{c.Offset, c.InnerOffset, c.ChunkOffset, c.ChunkSize}, name)
		require.Equal(t, w.ChunkDigest, c.ChunkDigest.String())
	}
	f, err := theirs.OpenFile(name)
	require.NoError(t, err)
	w := make([]byte, f.Size())
	for off := int64(0); off < f.Size(); { // they read within a chunk only
		e, _ := theirs.ChunkEntryForOffset(name, off)
		_, err = f.ReadAt(w[off:off+e.ChunkSize], off)
		require.NoError(t, err, name)
		off += e.ChunkSize
	}
	g, err := ours.OpenFile(name)
	require.NoError(t, err)
	got, err := io.ReadAll(g)
	require.NoError(t, err)
	require.True(t, bytes.Equal(w, got), name)
}

func stockOpen(t *testing.T, blob []byte, opts ...stock.OpenOption) *stock.Reader {
	t.Helper()
	r, err := stock.Open(section(blob), opts...)
	require.NoError(t, err)
	return r
}

func section(p []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(p), 0, int64(len(p)))
}

func TestStockReadsOurs(t *testing.T) {
	original := ordinary()
	for name, opts := range map[string]estargz.Options{
		"defaults": {}, "stored": {Level: estargz.NoCompression}, "small chunks": {ChunkSize: 100_000},
		"shared": {MinChunkSize: 50_000},
	} {
		t.Run(name, func(t *testing.T) {
			blob, info := write(t, original, opts)
			theirs := stockOpen(t, blob)
			if opts.MinChunkSize == 0 { // their check does not know innerOffset
				_, err := theirs.VerifyTOC(info.TOCDigest)
				require.NoError(t, err)
			}
			agree(t, blob, open(t, blob), theirs)

			r, err := stock.Unpack(section(blob), new(stock.GzipDecompressor))
			require.NoError(t, err)
			got, err := io.ReadAll(r)
			require.NoError(t, err)
			require.True(t, bytes.Equal(original, got))
		})
	}
}

func TestReadsStock(t *testing.T) {
	original := ordinary()
	var missed []string
	for name, opts := range map[string][]stock.Option{
		"Build":                   nil,
		"Build, prioritized":      {stock.WithPrioritizedFiles([]string{"usr/bin/su", "etc/passwd"})},
		"Build, small chunks":     {stock.WithChunkSize(100_000), stock.WithAllowPrioritizeNotFound(&missed), stock.WithPrioritizedFiles([]string{"none"})},
		"Build, shared members":   {stock.WithMinChunkSize(50_000)},
		"Build, fast compression": {stock.WithCompressionLevel(1)},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := stock.Build(section(original), opts...)
			require.NoError(t, err)
			blob, err := io.ReadAll(b)
			require.NoError(t, err)
			require.NoError(t, b.Close())
			agree(t, blob, open(t, blob), stockOpen(t, blob))
		})
	}
	t.Run("Writer", func(t *testing.T) {
		var b bytes.Buffer
		w := stock.NewWriterLevel(&b, 6)
		require.NoError(t, w.AppendTarLossLess(bytes.NewReader(original)))
		_, err := w.Close()
		require.NoError(t, err)
		agree(t, b.Bytes(), open(t, b.Bytes()), stockOpen(t, b.Bytes()))
		require.True(t, bytes.Equal(original, unpack(t, b.Bytes())))
	})
}

func TestReadsExternalTOC(t *testing.T) {
	original := ordinary()
	var b, toc bytes.Buffer
	c := externaltoc.NewGzipCompressor()
	w := stock.NewWriterWithCompressor(&b, c)
	require.NoError(t, w.AppendTarLossLess(bytes.NewReader(original)))
	tocDigest, err := w.Close()
	require.NoError(t, err)
	_, err = c.WriteTOCTo(&toc)
	require.NoError(t, err)
	blob := b.Bytes()

	_, err = estargz.Open(bytes.NewReader(blob), int64(len(blob)), estargz.OpenOptions{})
	require.ErrorIs(t, err, estargz.ErrExternalTOC)
	ours, err := estargz.Open(bytes.NewReader(blob), int64(len(blob)), estargz.OpenOptions{TOC: bytes.NewReader(toc.Bytes()), TOCDigest: tocDigest})
	require.NoError(t, err)
	theirs := stockOpen(t, blob, stock.WithDecompressors(externaltoc.NewGzipDecompressor(func() ([]byte, error) { return toc.Bytes(), nil })))
	f, err := ours.OpenFile("usr/bin/large")
	require.NoError(t, err)
	got, err := io.ReadAll(f)
	require.NoError(t, err)
	require.Equal(t, text(3, 2<<20+17), string(got))
	require.Equal(t, theirs.TOCDigest(), ours.TOCDigest())
	require.True(t, bytes.Equal(original, unpack(t, blob)))
}

// TestReadsLegacy reads the format before eStargz: a footer of 47 bytes and no
// digests. Structure yes, but no contents that nothing verifies.
func TestReadsLegacy(t *testing.T) {
	contents := "hello"
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	whole := tarOf(t, file("a", contents))
	_, err := z.Write(whole[:512])
	require.NoError(t, err)
	require.NoError(t, z.Close())
	offset := b.Len()
	z.Reset(&b)
	_, err = z.Write(whole[512:1024])
	require.NoError(t, err)
	require.NoError(t, z.Close())
	tocOffset := b.Len()
	toc := fmt.Sprintf(`{"version":1,"entries":[{"name":"a","type":"reg","size":5,"offset":%d}]}`, offset)
	z.Reset(&b)
	tw := tar.NewWriter(z)
	require.NoError(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "stargz.index.json", Size: int64(len(toc))}))
	_, err = tw.Write([]byte(toc))
	require.NoError(t, err)
	require.NoError(t, tw.Close())
	require.NoError(t, z.Close())
	extra := fmt.Appendf(nil, "%016xSTARGZ", tocOffset)
	b.Write([]byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff})
	b.Write(binary.LittleEndian.AppendUint16(nil, uint16(len(extra))))
	b.Write(extra)
	b.Write([]byte{1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0})

	_ = stockOpen(t, b.Bytes())
	r := open(t, b.Bytes())
	e, ok := r.Lookup("a")
	require.True(t, ok)
	require.EqualValues(t, 5, e.Size)
	_, err = r.ReadChunk(e)
	require.ErrorContains(t, err, "no digest to verify it by")
}
