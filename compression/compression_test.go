package compression

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/plugins/content/local"
	stock "github.com/containerd/stargz-snapshotter/estargz"
	bkcompression "github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/converter"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

const (
	gzipLayer = ocispecs.MediaTypeImageLayerGzip
	zstdLayer = ocispecs.MediaTypeImageLayerZstd
)

// TestConvert drives the type the way BuildKit does for force-compression, and
// lets the stock library judge the blob.
func TestConvert(t *testing.T) {
	one, zero, nine := 1, 0, 9
	for _, tc := range []struct {
		name  string
		opts  Options
		level *int
	}{
		{name: "defaults"},
		{name: "small chunks", opts: Options{ChunkSize: 64 << 10}},
		{name: "shared members", opts: Options{ChunkSize: 64 << 10, MinChunkSize: 256 << 10}},
		{name: "stored", level: &zero},
		{name: "fast", level: &one},
		{name: "small", level: &nine},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cs := newStore(t)
			layer := tarOf(t, file("etc/passwd", 100), file("bin/sh", 300_000), dir("empty"), file("none", 0))
			desc := put(t, cs, gzipLayer, gzipped(t, layer))
			typ := New(nil, tc.opts)
			comp := bkcompression.Config{Type: typ, Force: true, Level: tc.level}

			convert, err := converter.New(t.Context(), cs, desc, comp)
			require.NoError(t, err)
			require.NotNil(t, convert)
			got, err := convert(t.Context(), cs, desc)
			require.NoError(t, err)

			require.Equal(t, gzipLayer, got.MediaType)
			blob := get(t, cs, *got)
			plain := gunzipped(t, blob)
			diffID := digest.FromBytes(plain).String()
			require.Equal(t, diffID, got.Annotations[labels.LabelUncompressed])
			require.Equal(t, strconv.Itoa(len(plain)), got.Annotations[stock.StoreUncompressedSizeAnnotation])
			info, err := cs.Info(t.Context(), got.Digest)
			require.NoError(t, err)
			require.Equal(t, diffID, info.Labels[labels.LabelUncompressed])

			verify(t, blob, digest.Digest(got.Annotations[stock.TOCJSONDigestAnnotation]), tc.opts.MinChunkSize > 0)
			require.Equal(t, layer, unpack(t, cs, typ, *got), "the tar it came from")
			require.Equal(t, layer, unpack(t, cs, bkcompression.Gzip, *got), "the tar it came from, says BuildKit")

			again, err := converter.New(t.Context(), cs, *got, comp)
			require.NoError(t, err)
			require.Nil(t, again, "converted already")
		})
	}
}

// TestStockDetects makes sure that the label written here says what BuildKit
// would have found out.
func TestStockDetects(t *testing.T) {
	cs := newStore(t)
	desc := convertWith(t, cs, Options{}, put(t, cs, gzipLayer, gzipped(t, tarOf(t, file("a", 10)))))
	require.NoError(t, setLabels(t.Context(), cs, content.Info{Digest: desc.Digest}, map[string]string{labelEStargz: ""}))
	is, err := bkcompression.EStargz.Is(t.Context(), cs, desc.Digest)
	require.NoError(t, err)
	require.True(t, is)
	info, err := cs.Info(t.Context(), desc.Digest)
	require.NoError(t, err)
	require.Equal(t, "true", info.Labels[labelEStargz], "BuildKit's label has another name now")
}

func TestNeedsConversion(t *testing.T) {
	cs := newStore(t)
	layer := tarOf(t, file("a", 200_000))
	plain := put(t, cs, gzipLayer, gzipped(t, layer))
	small := Options{ChunkSize: 64 << 10}
	foreign := put(t, cs, gzipLayer, stockBlob(t, layer))
	tiny := put(t, cs, gzipLayer, gzipped(t, tarOf(t, file("tiny", 10))))
	// Of a layer of small files every chunk size makes the same blob.
	both := convertWith(t, cs, Options{}, tiny)
	require.Equal(t, both.Digest, convertWith(t, cs, small, tiny).Digest)

	absent := ocispecs.Descriptor{MediaType: gzipLayer, Digest: digest.FromString("absent"), Size: 1}
	for _, tc := range []struct {
		name string
		desc ocispecs.Descriptor
		opts Options
		want bool
	}{
		{name: "no layer", desc: ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageConfig, Digest: plain.Digest}},
		{name: "plain gzip", desc: plain, want: true},
		{name: "docker's gzip", desc: as(plain, images.MediaTypeDockerSchema2LayerGzip), want: true},
		{name: "zstd", desc: as(plain, zstdLayer), want: true},
		{name: "not compressed", desc: as(plain, ocispecs.MediaTypeImageLayer), want: true},
		{name: "lazy gzip", desc: absent, want: true},
		{name: "lazy eStargz", desc: annotated(absent, digest.FromString("toc").String())},
		{name: "lazy eStargz, any options", desc: annotated(absent, digest.FromString("toc").String()), opts: small},
		{name: "lazy, annotation of no digest", desc: annotated(absent, "yes"), want: true},
		{name: "lazy zstd:chunked", desc: as(annotated(absent, digest.FromString("toc").String()), zstdLayer), want: true},
		{name: "stock blob without annotation", desc: foreign},
		{name: "stock blob, any options", desc: foreign, opts: small},
		{name: "ours", desc: convertWith(t, cs, Options{}, plain)},
		{name: "ours, default spelled out", desc: convertWith(t, cs, Options{ChunkSize: estargz.DefaultChunkSize}, plain)},
		{name: "ours, other chunk size", desc: convertWith(t, cs, Options{}, plain), opts: small, want: true},
		{name: "ours, other min chunk size", desc: convertWith(t, cs, Options{}, plain), opts: Options{MinChunkSize: 1 << 20}, want: true},
		{name: "ours, written with both", desc: both},
		{name: "ours, written with both", desc: both, opts: small},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for range 2 { // the second time from labels
				got, err := New(nil, tc.opts).NeedsConversion(t.Context(), cs, tc.desc)
				require.NoError(t, err)
				require.Equal(t, tc.want, got)
			}
		})
	}
}

// TestString is about what BuildKit deduplicates concurrent conversions by.
func TestString(t *testing.T) {
	require.Equal(t, "estargz", New(nil, Options{}).String())
	require.Equal(t, "estargz", New(nil, Options{ChunkSize: estargz.DefaultChunkSize}).String())
	require.Equal(t, "estargz/65536-0", New(nil, Options{ChunkSize: 64 << 10}).String())
	require.Equal(t, "estargz/4194304-1024", New(nil, Options{MinChunkSize: 1 << 10}).String())
	require.Equal(t, bkcompression.EStargz.String(), Name)
}

func TestLevel(t *testing.T) {
	for level, want := range map[int]int{-1: estargz.DefaultLevel, 0: estargz.NoCompression, 1: 1, 9: 9} {
		got, err := Level(&level)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	got, err := Level(nil)
	require.NoError(t, err)
	require.Equal(t, estargz.DefaultLevel, got)
	for _, level := range []int{-2, 10, 22} {
		_, err := Level(&level)
		require.ErrorContains(t, err, fmt.Sprintf("compression-level=%d", level))
		compress, _ := New(nil, Options{}).Compress(t.Context(), bkcompression.Config{Level: &level})
		_, err = compress(io.Discard, gzipLayer)
		require.Error(t, err)
	}
}

func TestDecompressOthers(t *testing.T) {
	cs := newStore(t)
	layer := tarOf(t, file("a", 1000))
	for _, desc := range []ocispecs.Descriptor{
		put(t, cs, gzipLayer, gzipped(t, layer)),
		put(t, cs, ocispecs.MediaTypeImageLayer, layer),
		put(t, cs, gzipLayer, stockBlob(t, layer)),
	} {
		require.Equal(t, layer, unpack(t, cs, New(nil, Options{}), desc))
	}
	_, err := New(nil, Options{}).Decompress(t.Context(), cs, ocispecs.Descriptor{Digest: digest.FromString("absent")})
	require.Error(t, err)
}

func TestMediaType(t *testing.T) {
	compress, _ := New(nil, Options{}).Compress(t.Context(), bkcompression.Config{})
	for _, mt := range []string{zstdLayer, ocispecs.MediaTypeImageLayer, "text/plain"} {
		_, err := compress(io.Discard, mt)
		require.ErrorContains(t, err, mt)
	}
}

// TestManyLayersOneBudget exports more layers at once than the pool has
// workers, with less memory than one file of each needs.
func TestManyLayersOneBudget(t *testing.T) {
	noLeak(t)
	pool := estargz.NewPool(2, 1<<20)
	cs := newStore(t)
	layer := tarOf(t, file("a", 3<<20), file("b", 3), file("c", 500_000))
	src := put(t, cs, gzipLayer, gzipped(t, layer))

	want := convertWith(t, newStoreWith(t, src, cs), Options{ChunkSize: 512 << 10}, src)
	var wg sync.WaitGroup
	for range 8 {
		cs := newStoreWith(t, src, cs)
		wg.Go(func() {
			comp := bkcompression.Config{Type: New(pool, Options{ChunkSize: 512 << 10})}
			convert, err := converter.New(t.Context(), cs, src, comp)
			if !noError(t, err) {
				return
			}
			got, err := convert(t.Context(), cs, src)
			if noError(t, err) && got.Digest != want.Digest {
				t.Errorf("got %s, with a pool of its own %s", got.Digest, want.Digest)
			}
		})
	}
	wg.Wait()
}

func TestFailedDestination(t *testing.T) {
	noLeak(t)
	cause := errors.New("disk full")
	compress, finalize := New(nil, Options{}).Compress(t.Context(), bkcompression.Config{})
	w, err := compress(failAfter{n: 10_000, err: cause}, gzipLayer)
	require.NoError(t, err)
	_, err = io.Copy(w, bytes.NewReader(tarOf(t, file("a", 8<<20), file("b", 8<<20))))
	if err != nil { // it need not be known yet
		require.ErrorIs(t, err, cause)
	}
	require.ErrorIs(t, w.Close(), cause)
	require.ErrorIs(t, w.Close(), cause, "closed again")
	_, err = w.Write([]byte("more"))
	require.Error(t, err)
	// BuildKit's walking differ ignores what Close says and commits.
	_, err = finalize(t.Context(), newStore(t))
	require.ErrorIs(t, err, cause)
}

func TestTruncatedTar(t *testing.T) {
	noLeak(t)
	layer := tarOf(t, file("a", 100_000))
	compress, finalize := New(nil, Options{}).Compress(t.Context(), bkcompression.Config{})
	w, err := compress(io.Discard, gzipLayer)
	require.NoError(t, err)
	_, err = w.Write(layer[:50_000])
	require.NoError(t, err)
	_, err = finalize(t.Context(), newStore(t))
	require.Error(t, err, "not closed")
	require.Error(t, w.Close())
	_, err = finalize(t.Context(), newStore(t))
	require.Error(t, err)
}

// TestAbandoned is an export that is cancelled and forgets its writer.
func TestAbandoned(t *testing.T) {
	noLeak(t)
	cause := errors.New("client went away")
	ctx, cancel := context.WithCancelCause(t.Context())
	compress, _ := New(nil, Options{}).Compress(ctx, bkcompression.Config{})
	w, err := compress(io.Discard, gzipLayer)
	require.NoError(t, err)
	layer := tarOf(t, file("a", 1<<20))
	_, err = w.Write(layer[:600_000])
	require.NoError(t, err)
	cancel(cause)
	require.Eventually(t, func() bool {
		_, err = w.Write(layer[600_000:])
		return errors.Is(err, cause)
	}, time.Minute, time.Millisecond)
}

func TestCancelledThenClosed(t *testing.T) {
	noLeak(t)
	cause := errors.New("client went away")
	ctx, cancel := context.WithCancelCause(t.Context())
	compress, finalize := New(nil, Options{}).Compress(ctx, bkcompression.Config{})
	w, err := compress(io.Discard, gzipLayer)
	require.NoError(t, err)
	layer := tarOf(t, file("a", 1<<20))
	_, err = w.Write(layer[:600_000])
	require.NoError(t, err)
	cancel(cause)
	require.ErrorIs(t, w.Close(), cause)
	_, err = finalize(t.Context(), newStore(t))
	require.ErrorIs(t, err, cause)
}

// TestSecondTry is the overlay differ that gives up and the walking differ
// that takes over, with the same compressor.
func TestSecondTry(t *testing.T) {
	noLeak(t)
	cs := newStore(t)
	layer := tarOf(t, file("a", 100_000))
	compress, finalize := New(nil, Options{}).Compress(t.Context(), bkcompression.Config{})
	_, err := finalize(t.Context(), cs)
	require.Error(t, err, "nothing written")

	w, err := compress(io.Discard, gzipLayer)
	require.NoError(t, err)
	_, err = w.Write(layer[:1000])
	require.NoError(t, err)
	require.Error(t, w.Close())

	var blob bytes.Buffer
	w, err = compress(&blob, gzipLayer)
	require.NoError(t, err)
	_, err = w.Write(layer)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	desc := put(t, cs, gzipLayer, blob.Bytes())
	annotations, err := finalize(t.Context(), cs)
	require.NoError(t, err)
	verify(t, get(t, cs, desc), digest.Digest(annotations[stock.TOCJSONDigestAnnotation]), false)
}

// TestFullDisk is a differ that does not tell why it failed, and the next one.
func TestFullDisk(t *testing.T) {
	noLeak(t)
	full := &fs.PathError{Op: "write", Path: "/root/data", Err: syscall.ENOSPC}
	compress, _ := New(nil, Options{}).Compress(t.Context(), bkcompression.Config{})
	w, err := compress(failAfter{n: 10_000, err: full}, gzipLayer)
	require.NoError(t, err)
	_, _ = w.Write(tarOf(t, file("a", 100_000)))
	w.Close()
	_, err = compress(io.Discard, gzipLayer)
	require.ErrorIs(t, err, full)
}

// verify opens the blob with the stock library and checks the TOC and every
// chunk. sharing blobs have members of several files, which VerifyTOC does not
// know of; runtimes compare the TOC's digest and each chunk's themselves.
func verify(t *testing.T, blob []byte, toc digest.Digest, sharing bool) {
	t.Helper()
	r, err := stock.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
	require.NoError(t, err)
	require.Equal(t, toc, r.TOCDigest())
	if !sharing {
		_, err = r.VerifyTOC(toc)
		require.NoError(t, err)
	}
	var walk func(e *stock.TOCEntry)
	walk = func(e *stock.TOCEntry) {
		if e.Type == "reg" && e.Size > 0 {
			f, err := r.OpenFile(e.Name)
			require.NoError(t, err)
			for off := int64(0); off < e.Size; {
				chunk, ok := r.ChunkEntryForOffset(e.Name, off)
				require.True(t, ok)
				data := make([]byte, chunk.ChunkSize)
				_, err := f.ReadAt(data, off)
				require.NoError(t, err)
				require.Equal(t, chunk.ChunkDigest, digest.FromBytes(data).String(), "%s at %d", e.Name, off)
				off += chunk.ChunkSize
			}
		}
		e.ForeachChild(func(_ string, c *stock.TOCEntry) bool { walk(c); return true })
	}
	root, ok := r.Lookup("")
	require.True(t, ok)
	walk(root)
}

func convertWith(t *testing.T, cs content.Store, opts Options, desc ocispecs.Descriptor) ocispecs.Descriptor {
	t.Helper()
	convert, err := converter.New(t.Context(), cs, desc, bkcompression.Config{Type: New(nil, opts)})
	require.NoError(t, err)
	got, err := convert(t.Context(), cs, desc)
	require.NoError(t, err)
	return *got
}

func unpack(t *testing.T, cs content.Store, typ bkcompression.Type, desc ocispecs.Descriptor) []byte {
	t.Helper()
	r, err := typ.Decompress(t.Context(), cs, desc)
	require.NoError(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return b
}

func as(desc ocispecs.Descriptor, mediaType string) ocispecs.Descriptor {
	desc.MediaType = mediaType
	return desc
}

func annotated(desc ocispecs.Descriptor, toc string) ocispecs.Descriptor {
	desc.Annotations = map[string]string{stock.TOCJSONDigestAnnotation: toc}
	return desc
}

type entry struct {
	tar.Header
	data []byte
}

// file has contents that compress badly, but differ not from run to run.
func file(name string, size int) entry {
	data := make([]byte, size)
	r := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", name))))
	r.Read(data)
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(size), Mode: 0o644}, data}
}

func dir(name string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}}
}

func tarOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		require.NoError(t, tw.WriteHeader(&e.Header))
		_, err := tw.Write(e.data)
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	return b.Bytes()
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

func gunzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(b))
	require.NoError(t, err)
	out, err := io.ReadAll(r)
	require.NoError(t, err)
	return out
}

func stockBlob(t *testing.T, layer []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := stock.NewWriter(&b)
	require.NoError(t, w.AppendTarLossLess(bytes.NewReader(layer)))
	_, err := w.Close()
	require.NoError(t, err)
	return b.Bytes()
}

// A blob that cannot be read now may be eStargz: the answer is not remembered.
func TestReadErrorsAreNotRemembered(t *testing.T) {
	cs := newStore(t)
	desc := put(t, cs, ocispecs.MediaTypeImageLayerGzip, stockBlob(t, tarOf(t)))
	_, err := New(nil, Options{}).NeedsConversion(t.Context(), unreadable{cs}, desc)
	require.ErrorIs(t, err, syscall.EIO)
	needs, err := New(nil, Options{}).NeedsConversion(t.Context(), cs, desc)
	require.NoError(t, err)
	require.False(t, needs)
}

// unreadable is a store on a disk that fails.
type unreadable struct{ content.Store }

func (s unreadable) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	ra, err := s.Store.ReaderAt(ctx, desc)
	return failing{ra}, err
}

type failing struct{ content.ReaderAt }

func (failing) ReadAt([]byte, int64) (int, error) { return 0, syscall.EIO }

func newStore(t *testing.T) content.Store {
	t.Helper()
	cs, err := local.NewLabeledStore(t.TempDir(), &labelStore{m: map[digest.Digest]map[string]string{}})
	require.NoError(t, err)
	return cs
}

// newStoreWith returns another store with a copy of one blob.
func newStoreWith(t *testing.T, desc ocispecs.Descriptor, from content.Store) content.Store {
	t.Helper()
	cs := newStore(t)
	put(t, cs, desc.MediaType, get(t, from, desc))
	return cs
}

func put(t *testing.T, cs content.Store, mediaType string, b []byte) ocispecs.Descriptor {
	t.Helper()
	desc := ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	require.NoError(t, content.WriteBlob(t.Context(), cs, desc.Digest.String(), bytes.NewReader(b), desc))
	return desc
}

func get(t *testing.T, cs content.Store, desc ocispecs.Descriptor) []byte {
	t.Helper()
	b, err := content.ReadBlob(t.Context(), cs, desc)
	require.NoError(t, err)
	return b
}

// labelStore keeps the labels of a content store in memory.
type labelStore struct {
	mu sync.Mutex
	m  map[digest.Digest]map[string]string
}

func (s *labelStore) Get(d digest.Digest) (map[string]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.m[d]), nil
}

func (s *labelStore) Set(d digest.Digest, l map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[d] = maps.Clone(l)
	return nil
}

func (s *labelStore) Update(d digest.Digest, l map[string]string) (map[string]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := maps.Clone(s.m[d])
	if m == nil {
		m = map[string]string{}
	}
	for k, v := range l {
		if v == "" {
			delete(m, k)
		} else {
			m[k] = v
		}
	}
	s.m[d] = m
	return maps.Clone(m), nil
}

type failAfter struct {
	n   int
	err error
}

func (w failAfter) Write(p []byte) (int, error) {
	if len(p) > w.n {
		return 0, w.err
	}
	return len(p), nil
}

// noLeak fails the test when goroutines of this project outlive it.
func noLeak(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		var left []string
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			left = left[:0]
			buf := make([]byte, 1<<20)
			for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
				if strings.Contains(g, "buildkitd-esgz/compression") && !strings.Contains(g, "compression.noLeak") {
					left = append(left, g)
				}
			}
			if len(left) == 0 {
				return
			}
		}
		t.Errorf("goroutines left:\n%s", strings.Join(left, "\n\n"))
	})
}

func noError(t *testing.T, err error) bool {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
	return err == nil
}
