package estargz_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	stock "github.com/containerd/stargz-snapshotter/estargz"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

func write(t testing.TB, tar []byte, opts estargz.Options) ([]byte, *estargz.Info) {
	t.Helper()
	var b bytes.Buffer
	info, err := estargz.Write(context.Background(), &b, bytes.NewReader(tar), opts)
	require.NoError(t, err)
	return b.Bytes(), info
}

func unpack(t testing.TB, blob []byte) []byte {
	t.Helper()
	r, err := estargz.Unpack(bytes.NewReader(blob), int64(len(blob)))
	require.NoError(t, err)
	defer r.Close()
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	return got
}

func gunzip(t testing.TB, blob []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(blob))
	require.NoError(t, err)
	got, err := io.ReadAll(z)
	require.NoError(t, err)
	return got
}

func open(t testing.TB, blob []byte) *estargz.Reader {
	t.Helper()
	r, err := estargz.Open(bytes.NewReader(blob), int64(len(blob)), estargz.OpenOptions{})
	require.NoError(t, err)
	return r
}

// checkBlob checks everything that holds for any blob of a tar.
func checkBlob(t testing.TB, original, blob []byte, info *estargz.Info) {
	t.Helper()
	require.True(t, bytes.Equal(original, unpack(t, blob)), "unpacking returns another tar")
	require.Equal(t, digest.FromBytes(blob), info.Digest)
	require.Equal(t, int64(len(blob)), info.Size)
	all := gunzip(t, blob)
	require.Equal(t, digest.FromBytes(all), info.DiffID)
	require.Equal(t, int64(len(all)), info.UncompressedSize)
	require.True(t, bytes.HasPrefix(all, original))
	require.True(t, estargz.Detect(bytes.NewReader(blob), int64(len(blob))))

	r, err := estargz.Open(bytes.NewReader(blob), int64(len(blob)), estargz.OpenOptions{TOCDigest: info.TOCDigest})
	require.NoError(t, err)
	checkContents(t, original, r)
}

// checkContents compares what the reader says with the tar, where the last of
// several entries with one name counts.
func checkContents(t testing.TB, original []byte, r *estargz.Reader) {
	t.Helper()
	want := map[string]digest.Digest{}
	headers := map[string]*tar.Header{}
	tr := tar.NewReader(bytes.NewReader(original))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		name := strings.Trim(strings.TrimPrefix(h.Name, "./"), "/")
		sum := sha256.New()
		_, err = io.Copy(sum, tr)
		require.NoError(t, err)
		want[name], headers[name] = digest.NewDigest(digest.SHA256, sum), h
	}
	for name, h := range headers {
		e, ok := r.Lookup(name)
		require.True(t, ok, name)
		if h.Typeflag == tar.TypeLink {
			continue
		}
		require.Equal(t, h.Mode, e.Mode, name)
		require.Equal(t, []int{h.Uid, h.Gid}, []int{e.UID, e.GID}, name)
		require.True(t, h.ModTime.Equal(e.ModTime), "%s: %v, want %v", name, e.ModTime, h.ModTime)
		for key, value := range h.PAXRecords {
			if x, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
				require.Equal(t, value, string(e.Xattrs[x]), name)
			}
		}
		if h.Typeflag != tar.TypeReg {
			require.Equal(t, h.Linkname, e.LinkName, name)
			continue
		}
		f, err := r.OpenFile(name)
		require.NoError(t, err)
		got, err := digest.FromReader(f)
		require.NoError(t, err, name)
		require.Equal(t, want[name], got, name)
		if h.Size > 0 {
			require.Equal(t, want[name], e.Digest, name)
		}
	}
}

func TestWriteKeepsTheTar(t *testing.T) {
	original := ordinary()
	for name, opts := range map[string]estargz.Options{
		"defaults":      {},
		"chunks":        {Level: 2, ChunkSize: 1 << 20},
		"fast":          {Level: 1},
		"small":         {Level: 9},
		"stored":        {Level: estargz.NoCompression},
		"small chunks":  {ChunkSize: 10_000},
		"odd chunks":    {ChunkSize: 1 << 20, MinChunkSize: 1},
		"shared":        {MinChunkSize: 50_000},
		"shared, large": {MinChunkSize: 400_000, ChunkSize: 300_000},
		"little memory": {Pool: estargz.NewPool(1, 1)},
	} {
		t.Run(name, func(t *testing.T) {
			blob, info := write(t, original, opts)
			checkBlob(t, original, blob, info)
		})
	}
}

func TestWriteDefaultChunks(t *testing.T) {
	original := tarOf(t, file("exact", text(1, 8<<20)), file("more", text(2, 4<<20+1)), file("less", text(3, 4<<20-1)))
	blob, info := write(t, original, estargz.Options{Level: 1})
	checkBlob(t, original, blob, info)
	r := open(t, blob)
	for name, want := range map[string]int{"exact": 2, "more": 2, "less": 1} {
		require.Len(t, r.Chunks(name), want, name)
	}
}

func TestWriteHardTars(t *testing.T) {
	long := strings.Repeat("long/", 60) + strings.Repeat("n", 200)
	pax := func(h *tar.Header) { h.Format = tar.FormatPAX }
	gnu := func(h *tar.Header) { h.Format = tar.FormatGNU }
	plain := tarOf(t, file("a", "b"))
	for name, original := range map[string][]byte{
		"empty stream":         {},
		"empty layer":          tarOf(t),
		"no end":               plain[:1024],
		"bytes behind the end": append(plain[:len(plain):len(plain)], noise(1, 3<<20)...),
		"long names, PAX":      tarOf(t, file(long, "x").with(pax), symlink("s", long).with(pax)),
		"long names, GNU":      tarOf(t, file(long, "x").with(gnu), symlink("s", long).with(gnu)),
		"UTF-8 names":          tarOf(t, file("Főtanúsítvány", "x"), file("<&>\u2028\"\\", "y")),
		"fractional times":     tarOf(t, file("a", "b").with(func(h *tar.Header) { h.Format, h.ModTime = tar.FormatPAX, time.Unix(1, 123456789) })),
		"the epoch":            tarOf(t, file("a", "b").with(func(h *tar.Header) { h.ModTime = time.Unix(0, 0) })),
		"before the epoch":     tarOf(t, file("a", "b").with(func(h *tar.Header) { h.Format, h.ModTime = tar.FormatPAX, time.Unix(-1e9, 0) })),
		"global header":        tarOf(t, tarEntry{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}}}, file("a", "b")),
		"binary xattrs":        tarOf(t, file("a", "b").with(xattr("user.x", "\xff\xfe=\n\x01")), dir("d").with(xattr("trusted.overlay.opaque", "y"))),
		"duplicate files":      tarOf(t, file("a", "first"), file("b", "x"), file("a", text(1, 5<<20)), file("a", "last")),
		"duplicate dirs":       tarOf(t, dir("d"), file("d/a", "x"), dir("d/").with(func(h *tar.Header) { h.Mode = 0o700 })),
		"dir for a symlink":    tarOf(t, symlink("d", "e"), dir("d"), file("d/a", "x")),
		"link before target":   tarOf(t, link("l", "./a"), link("m", "l"), file("a", "contents")),
		"TOC":                  tarOf(t, file("stargz.index.json", "{}"), file("a", "b")),
		"landmarks":            tarOf(t, file(".prefetch.landmark", "\x0f"), dir(".no.prefetch.landmark")),
		"dots":                 tarOf(t, file("./a/../b", "x"), file("../../c", "y"), file("/d", "z")),
		"many headers":         tarOf(t, manyDirs(5000)...),
		"large PAX":            tarOf(t, file("a", "b").with(xattr("user.x", text(1, 900_000))), file("c", text(2, 1<<20))),
	} {
		t.Run(name, func(t *testing.T) {
			blob, info := write(t, original, estargz.Options{})
			require.True(t, bytes.Equal(original, unpack(t, blob)), "unpacking returns another tar")
			if name == "dots" {
				r := open(t, blob)
				for _, path := range []string{"b", "c", "d"} {
					_, ok := r.Lookup(path)
					require.True(t, ok, path)
				}
				return
			}
			checkBlob(t, original, blob, info)
		})
	}
}

func manyDirs(n int) (dirs []tarEntry) {
	for i := range n {
		dirs = append(dirs, dir(fmt.Sprintf("%d/", i)))
	}
	return dirs
}

func TestWriteRefuses(t *testing.T) {
	plain := tarOf(t, file("a", text(1, 10_000)), file("b", "c"))
	for name, c := range map[string]struct {
		tar  []byte
		opts estargz.Options
		want string
	}{
		"truncated contents":     {tar: plain[:5000], want: "unexpected EOF"},
		"truncated padding":      {tar: plain[:512+10_000+1], want: "unexpected EOF"},
		"truncated header":       {tar: plain[:100], want: "unexpected EOF"},
		"rubbish":                {tar: []byte(noise(1, 4096)), want: "invalid tar header"},
		"non-UTF-8 name":         {tar: tarOf(t, file("caf\xe9", "")), want: `tar entry "caf\xe9": the name is not UTF-8`},
		"non-UTF-8 target":       {tar: tarOf(t, symlink("a", "caf\xe9")), want: `link target "caf\xe9" is not UTF-8`},
		"a far year":             {tar: tarOf(t, file("a", "").with(func(h *tar.Header) { h.Format, h.ModTime = tar.FormatPAX, time.Unix(1<<40, 0) })), want: "has no place in eStargz"},
		"sparse":                 {tar: gnuSparse(t), want: `tar entry "sparse": a sparse file has no place in eStargz`},
		"link to nothing":        {tar: tarOf(t, link("a", "b")), want: `hard link "a" leads to "b", which is not in the layer`},
		"link to itself":         {tar: tarOf(t, link("a", "b"), link("b", "a")), want: `leads to no file`},
		"link to a directory":    {tar: tarOf(t, dir("d"), link("a", "d")), want: `leads to the directory "d"`},
		"file under a symlink":   {tar: tarOf(t, symlink("lib", "usr/lib"), file("lib/a", "")), want: `"lib/a" lies under "lib", which is a symlink`},
		"symlink for a dir":      {tar: tarOf(t, file("lib/a", ""), symlink("lib", "usr/lib")), want: `takes the place of a directory with files in it`},
		"linked file replaced":   {tar: tarOf(t, file("a", "1"), link("b", "a"), file("a", "2")), want: "a hard link shares the first one"},
		"root is a file":         {tar: tarOf(t, file("./.", "1")), want: "the root is a reg"},
		"a path too long":        {tar: tarOf(t, file(strings.Repeat("long/", 900)+"n", "")), want: "a path of 4501 bytes is longer than Linux takes"},
		"unknown type":           {tar: tarOf(t, tarEntry{Header: tar.Header{Typeflag: tar.TypeCont, Name: "a"}}), want: "is none that eStargz has"},
		"level":                  {opts: estargz.Options{Level: 10}, want: "compression level 10: want 1 to 9"},
		"chunk size":             {opts: estargz.Options{ChunkSize: -1}, want: "chunk size -1"},
		"enormous minimum chunk": {opts: estargz.Options{MinChunkSize: 1 << 40}, want: "minimum chunk size 1099511627776"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := estargz.Write(context.Background(), io.Discard, bytes.NewReader(c.tar), c.opts)
			require.ErrorContains(t, err, c.want)
		})
	}
}

// gnuSparse is what GNU tar --sparse makes of a file of one mebibyte with
// nothing in it. The standard library reads such headers, but writes none.
func gnuSparse(t testing.TB) []byte {
	p := tarOf(t, file("sparse", ""))
	h := p[:512]
	h[156] = tar.TypeGNUSparse
	copy(h[257:], "ustar  \x00")
	copy(h[386:], "00004000000\x0000000000000\x00") // one fragment at its end
	copy(h[483:], "00004000000\x00")                // real size
	copy(h[148:], "        ")
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return p
}

func TestWriteIsDeterministic(t *testing.T) {
	original := ordinary()
	opts := estargz.Options{ChunkSize: 1 << 20, Level: 5}
	want, _ := write(t, original, opts)
	shared := estargz.NewPool(3, 0)
	for i := range 4 {
		previous := runtime.GOMAXPROCS(1 + i%2)
		opts.Pool = []*estargz.Pool{nil, shared, shared, estargz.NewPool(7, 1<<20)}[i]
		var b bytes.Buffer
		var input io.Reader = bytes.NewReader(original)
		if i == 2 {
			input = iotest.HalfReader(input)
		}
		_, err := estargz.Write(context.Background(), &b, input, opts)
		runtime.GOMAXPROCS(previous)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, b.Bytes()), "round %d", i)
	}
}

func TestWriteLargeFile(t *testing.T) {
	if testing.Short() {
		t.Skip("reads 4 GiB of zeros")
	}
	const size = 4<<30 + 5
	var head bytes.Buffer
	require.NoError(t, tar.NewWriter(&head).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "large", Size: size}))
	zeros := io.LimitReader(zeroReader{}, (size+511)/512*512+1024)
	f, err := os.Create(t.TempDir() + "/blob")
	require.NoError(t, err)
	defer f.Close()
	info, err := estargz.Write(context.Background(), f, io.MultiReader(&head, zeros), estargz.Options{Level: 1})
	require.NoError(t, err)
	r, err := estargz.Open(f, info.Size, estargz.OpenOptions{TOCDigest: info.TOCDigest})
	require.NoError(t, err)
	e, ok := r.Lookup("large")
	require.True(t, ok)
	require.EqualValues(t, size, e.Size)
	chunks := r.Chunks("large")
	require.Len(t, chunks, 1025)
	p, err := r.ReadChunk(chunks[1024])
	require.NoError(t, err)
	require.Equal(t, make([]byte, 5), p)
	sr, err := stock.Open(io.NewSectionReader(f, 0, info.Size))
	require.NoError(t, err)
	_, err = sr.VerifyTOC(info.TOCDigest)
	require.NoError(t, err)
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestWriteStopsOnErrors(t *testing.T) {
	original := ordinary()
	broken := errors.New("broken")
	before := runtime.NumGoroutine()
	pool := estargz.NewPool(2, 8<<20)

	_, err := estargz.Write(context.Background(), &failingWriter{after: 1 << 18, err: broken}, bytes.NewReader(original), estargz.Options{Pool: pool})
	require.ErrorIs(t, err, broken)

	input := io.MultiReader(bytes.NewReader(original[:2<<20]), iotest.ErrReader(broken))
	_, err = estargz.Write(context.Background(), io.Discard, input, estargz.Options{Pool: pool})
	require.ErrorIs(t, err, broken)

	ctx, cancel := context.WithCancel(context.Background())
	_, err = estargz.Write(ctx, writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil }), bytes.NewReader(original), estargz.Options{Pool: pool})
	require.ErrorIs(t, err, context.Canceled)

	// All of the budget is free again, and nobody is left behind.
	blob, info := write(t, original, estargz.Options{Pool: pool})
	checkBlob(t, original, blob, info)
	for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "goroutines are left behind")
	}
}

type failingWriter struct {
	after int
	err   error
}

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.after -= len(p); w.after < 0 {
		return 0, w.err
	}
	return len(p), nil
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestWritersShareAPool(t *testing.T) {
	original := ordinary()
	want, _ := write(t, original, estargz.Options{})
	pool := estargz.NewPool(2, 16<<20)
	results := make(chan error)
	for range 8 {
		go func() {
			var b bytes.Buffer
			_, err := estargz.Write(context.Background(), &b, bytes.NewReader(original), estargz.Options{Pool: pool})
			if err == nil && !bytes.Equal(want, b.Bytes()) {
				err = errors.New("another blob")
			}
			results <- err
		}()
	}
	for range 8 {
		require.NoError(t, <-results)
	}
}

// TestStalledInputHoldsNoPool: an input that waits for a registry does not keep
// other writers from the memory of the pool.
func TestStalledInputHoldsNoPool(t *testing.T) {
	const size = 12 << 20
	pool := estargz.NewPool(1, 8<<20).WithPatience(time.Millisecond)
	input := tarOf(t, file("large", strings.Repeat("x", size)))
	r, w := io.Pipe()
	var stalled bytes.Buffer
	done := make(chan error)
	go func() {
		_, err := estargz.Write(context.Background(), &stalled, r, estargz.Options{Level: 1, Pool: pool})
		done <- err
	}()
	half := len(input) / 2
	_, err := w.Write(input[:half])
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err = estargz.Write(ctx, io.Discard, bytes.NewReader(input), estargz.Options{Level: 1, Pool: pool})
	require.NoError(t, err, "it waits for the other input")

	_, err = w.Write(input[half:])
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, <-done)
	require.Equal(t, input, unpack(t, stalled.Bytes()))
}

// TestFailedWriterWaitsForNobody has a writer whose output fails while its input stalls.
// When the input goes on, the pool's memory is another's, whose output is not taken.
func TestFailedWriterWaitsForNobody(t *testing.T) {
	var header bytes.Buffer
	require.NoError(t, tar.NewWriter(&header).WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 1 << 40}))
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		pool := estargz.NewPool(1, 32<<20)
		stalls, input := io.Pipe()
		fail, full, done := make(chan struct{}), errors.New("the disk is full"), make(chan error, 1)
		go func() {
			failing := writerFunc(func([]byte) (int, error) { <-fail; return 0, full })
			_, err := estargz.Write(ctx, failing, stalls, estargz.Options{Level: 1, Pool: pool})
			done <- err
		}()
		_, err := io.Copy(input, io.MultiReader(&header, io.LimitReader(zeroReader{}, 6<<20)))
		require.NoError(t, err)
		time.Sleep(time.Minute) // it has lent its memory
		var other sync.WaitGroup
		other.Go(func() {
			stuck := writerFunc(func([]byte) (int, error) { <-ctx.Done(); return 0, ctx.Err() })
			_, err := estargz.Write(ctx, stuck, io.MultiReader(bytes.NewReader(header.Bytes()), zeroReader{}), estargz.Options{Level: 1, Pool: pool})
			require.ErrorIs(t, err, context.Canceled)
		})
		synctest.Wait()
		close(fail)
		synctest.Wait()
		_, err = input.Write([]byte{0})
		require.NoError(t, err)
		synctest.Wait()
		select {
		case err := <-done:
			require.ErrorIs(t, err, full)
		default:
			t.Error("it waits for the other writer")
		}
		cancel()
		other.Wait()
	})
}

// TestWritersShareMemory has writers whose output is not taken: together they read
// no more input than the pool has memory for.
func TestWritersShareMemory(t *testing.T) {
	const memory, writers = 64 << 20, 6
	var header bytes.Buffer
	require.NoError(t, tar.NewWriter(&header).WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg, Size: 1 << 40}))
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		stuck := writerFunc(func([]byte) (int, error) { <-ctx.Done(); return 0, ctx.Err() })
		pool := estargz.NewPool(2, memory)
		var read atomic.Int64
		var all sync.WaitGroup
		for range writers {
			input := io.TeeReader(io.MultiReader(bytes.NewReader(header.Bytes()), zeroReader{}), writerFunc(func(p []byte) (int, error) {
				read.Add(int64(len(p)))
				return len(p), nil
			}))
			all.Go(func() {
				_, err := estargz.Write(ctx, stuck, input, estargz.Options{Pool: pool})
				require.ErrorIs(t, err, context.Canceled)
			})
		}
		synctest.Wait()
		require.LessOrEqual(t, read.Load(), int64(memory/2), "half is for output")
		require.Greater(t, read.Load(), int64(memory/4))
		cancel()
		all.Wait()
	})
}
