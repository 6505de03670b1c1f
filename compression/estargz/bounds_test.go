package estargz_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// A meteredBlob counts the bytes that are read of a blob.
type meteredBlob struct {
	*bytes.Reader
	read   int64
	onRead func(total int64)
}

func (b *meteredBlob) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.Reader.ReadAt(p, off)
	b.read += int64(n)
	if b.onRead != nil {
		b.onRead(b.read)
	}
	return n, err
}

// sharedLayer is a layer of files that share one member, and their names from
// the last to the first.
func sharedLayer(t *testing.T) (blob []byte, backwards []string) {
	var files []tarEntry
	for i := range 800 {
		f := file(fmt.Sprintf("%03d", i), noise(uint64(i), 4000))
		files = append(files, f)
		backwards = append([]string{f.Name}, backwards...)
	}
	blob, _ = write(t, tarOf(t, files...), estargz.Options{Level: 1, MinChunkSize: 4 << 20})
	require.Equal(t, open(t, blob).Entries()[0].Offset, open(t, blob).Entries()[799].Offset)
	return blob, backwards
}

// TestReorderReadsSharedMembersFewTimes: each file before the last one read has
// its member decompressed again.
func TestReorderReadsSharedMembersFewTimes(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	blob, backwards := sharedLayer(t)
	metered := &meteredBlob{Reader: bytes.NewReader(blob)}
	r, err := estargz.Open(metered, int64(len(blob)), estargz.OpenOptions{})
	require.NoError(t, err)
	var b bytes.Buffer
	info, err := estargz.Reorder(context.Background(), &b, r, backwards[:700], estargz.Options{Level: 1})
	require.NoError(t, err)
	require.LessOrEqual(t, metered.read, int64(10*len(blob)))

	inTarOrder := append([]string(nil), backwards[:700]...)
	for i, j := 0, len(inTarOrder)-1; i < j; i, j = i+1, j-1 {
		inTarOrder[i], inTarOrder[j] = inTarOrder[j], inTarOrder[i]
	}
	want, err := estargz.OrderTar(unpack(t, blob), inTarOrder)
	require.NoError(t, err)
	checkBlob(t, want, b.Bytes(), info)
}

func TestReorderOfSharedMembersEndsWithItsContext(t *testing.T) {
	blob, backwards := sharedLayer(t)
	metered := &meteredBlob{Reader: bytes.NewReader(blob)}
	r, err := estargz.Open(metered, int64(len(blob)), estargz.OpenOptions{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	half := int64(len(blob) / 2)
	metered.read, metered.onRead = 0, func(total int64) {
		if total > half {
			cancel()
		}
	}
	_, err = estargz.Reorder(ctx, io.Discard, r, backwards[:10], estargz.Options{})
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, metered.read, half+64<<10)
}

// TestReorderTriesFewMarkers: the end of a deflate block at a byte looks like
// the boundary behind the contents, and a member can have any number of them.
// Each is tried by decompressing all that follows.
func TestReorderTriesFewMarkers(t *testing.T) {
	contents := text(1, 8192)
	original := tarOf(t, file("a", contents), dir("d/"), file("z", "z"))
	const headers = 512
	heads := original[headers+len(contents):][:2*headers] // of "d/" and "z"
	for markers, kept := range map[int]bool{0: true, 5: true, 1 << 17: false} {
		t.Run(fmt.Sprint(markers), func(t *testing.T) {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			var offsets []int
			member := func() {
				require.NoError(t, z.Close())
				offsets = append(offsets, b.Len())
				z.Reset(&b)
			}
			z.Write(original[:headers])
			member()
			io.WriteString(z, contents)
			z.Flush()
			z.Write(heads[:headers])
			for range markers {
				z.Flush()
			}
			z.Write(heads[headers:])
			member()
			z.Write(original[headers+len(contents)+2*headers:])
			member()
			blob := withTOC(t, b.Bytes(), fmt.Sprintf(`{"version":1,"entries":[
				{"name":"a","type":"reg","mode":420,"size":%d,"offset":%d,"chunkDigest":%q},
				{"name":"d/","type":"dir","mode":493},
				{"name":"z","type":"reg","mode":420,"size":1,"offset":%d,"chunkDigest":%q}]}`,
				len(contents), offsets[0], digest.FromString(contents), offsets[1], digest.FromString("z")))

			got, _ := reorder(t, blob, []string{"z"}, estargz.Options{Level: 1})
			want, err := estargz.OrderTar(original, []string{"z"})
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, unpack(t, got)), "another tar")
			a, ok := open(t, got).Lookup("a")
			require.True(t, ok)
			same := bytes.Equal(blob[offsets[0]:][:1000], got[a.Offset:][:1000])
			require.Equal(t, kept, same, "contents kept as they were compressed")
		})
	}
}

// TestWriteRefusesEndlessHeaders: what stands in front of an entry is held until
// the entry comes.
func TestWriteRefusesEndlessHeaders(t *testing.T) {
	xattrs := tarOf(t, file("first", "1"), file("a", "a").with(xattr("user.x", strings.Repeat("x", 500<<10))))
	first, header := xattrs[:1024], xattrs[1024:][:501<<10]
	require.EqualValues(t, 'x', header[156])
	endless := &repeated{p: header, times: 100}
	read := &readCounter{r: io.MultiReader(bytes.NewReader(first), endless)}
	_, err := estargz.Write(context.Background(), io.Discard, read, estargz.Options{})
	require.ErrorContains(t, err, `tar after "first"`)
	require.ErrorContains(t, err, "bytes of headers in front of one entry")
	require.Less(t, read.n, 6<<20)

	_, err = estargz.OrderTar(bytes.Repeat(header, 100), nil)
	require.ErrorContains(t, err, "tar at 0: more than")
}

// TestReorderRefusesManyGlobalHeaders: those are in no TOC, and each is a part
// of the tar.
func TestReorderRefusesManyGlobalHeaders(t *testing.T) {
	global := tarOf(t, tarEntry{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}})[:1024]
	_, err := estargz.OrderTar(bytes.Repeat(global, 5000), nil)
	require.ErrorContains(t, err, "global headers")
}

type repeated struct {
	p     []byte
	times int
	at    int
}

func (r *repeated) Read(p []byte) (int, error) {
	if r.at == len(r.p) {
		r.times--
		r.at = 0
	}
	if r.times == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.p[r.at:])
	r.at += n
	return n, nil
}

type readCounter struct {
	r io.Reader
	n int
}

func (c *readCounter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// TestWriteStopsAtFullDisk: a destination that fails ends the writer at once,
// not when its input ends.
func TestWriteStopsAtFullDisk(t *testing.T) {
	const size = 512 << 20
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: size}))
	read := &readCounter{r: io.MultiReader(&b, &repeated{p: make([]byte, 1<<20), times: size >> 20}, bytes.NewReader(make([]byte, 1024)))}
	full := errors.New("no space left on device")
	_, err := estargz.Write(context.Background(), writerFunc(func([]byte) (int, error) { return 0, full }), read, estargz.Options{Level: 1, Pool: estargz.NewPool(1, 32<<20)})
	require.ErrorIs(t, err, full)
	require.Less(t, read.n, 64<<20)
}

// TestReorderHoldsNoBlob: what the TOC does not name is neither read whole nor
// kept.
func TestReorderHoldsNoBlob(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	const files, size = 10, 8 << 20
	var honest, hidden []tarEntry
	for i := range files {
		contents := strings.Repeat("0", size-blockSize)
		honest = append(honest, file(fmt.Sprintf("a%d", i), contents))
		hidden = append(hidden, file("hidden", contents), file(fmt.Sprintf("a%d", i), "a"))
	}
	layers := map[string][]byte{}
	layers["honest"], _ = write(t, tarOf(t, honest...), estargz.Options{Level: 1})
	layers["hidden behind each file"], _ = write(t, tarOf(t, append(hidden, file("hidden", ""))...), estargz.Options{Level: 1})
	random, _ := write(t, tarOf(t, file("hidden", noise(1, 12<<20)), file("hidden", "")), estargz.Options{Level: 1})
	layers["one hidden file"] = random

	peaks := map[string]uint64{}
	for name, blob := range layers {
		var mu sync.Mutex
		var largest int
		var peak uint64
		r, err := estargz.Open(readerAt(func(p []byte, off int64) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			if len(p) > blockSize { // not each header of a member
				peak = max(peak, heap())
			}
			largest = max(largest, len(p))
			return bytes.NewReader(blob).ReadAt(p, off)
		}), int64(len(blob)), estargz.OpenOptions{})
		require.NoError(t, err)
		heap() // empties pools that other tests filled, the second time
		before := heap()
		_, err = estargz.Reorder(context.Background(), io.Discard, r, []string{"a3"}, estargz.Options{Level: 1, Pool: estargz.NewPool(1, 16<<20)})
		require.NoError(t, err)
		peaks[name] = max(peak, before) - before
		require.LessOrEqual(t, largest, 8<<20, name)
	}
	for name, peak := range peaks {
		t.Logf("%s: %d MiB", name, peak>>20)
		require.LessOrEqual(t, peak, peaks["honest"]+64<<20, name)
	}
}

const blockSize = 512

// heap returns how many bytes are in use.
func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

type readerAt func(p []byte, off int64) (int, error)

func (f readerAt) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// TestDensestLayer has as many entries in as few bytes as there can be. Its writer
// takes them, and its reader.
func TestDensestLayer(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	const files = 400_000
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		h := tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}
		var err error
		for i := 0; i < files && err == nil; i++ {
			h.Name = fmt.Sprintf("usr/share/empty/%d", i)
			err = tw.WriteHeader(&h)
		}
		w.CloseWithError(errors.Join(err, tw.Close()))
	}()
	var b bytes.Buffer
	info, err := estargz.Write(context.Background(), &b, r, estargz.Options{Level: 1})
	require.NoError(t, err)
	_, err = estargz.Open(bytes.NewReader(b.Bytes()), info.Size, estargz.OpenOptions{})
	require.ErrorContains(t, err, "entries take more than")
	dense, err := estargz.Open(bytes.NewReader(b.Bytes()), info.Size, estargz.OpenOptions{Dense: true})
	require.NoError(t, err)
	require.Len(t, dense.Entries(), files)
}
