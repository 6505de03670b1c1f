package store

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// find returns the node of a path.
func find(t testing.TB, l *Layer, name string) Node {
	t.Helper()
	n := Root
	for base := range strings.SplitSeq(name, "/") {
		next, ok := l.Lookup(n, base)
		require.True(t, ok, name)
		n = next
	}
	return n
}

// names returns the nodes of a layer by their paths, without the root.
func names(l *Layer) map[string]Node {
	all := map[string]Node{}
	var visit func(n Node, name string)
	visit = func(n Node, name string) {
		for _, e := range l.Entries(n, 0) {
			name := path.Join(name, e.Name)
			all[name] = e.Node
			visit(e.Node, name)
		}
	}
	visit(Root, "")
	return all
}

// files returns the regular files of a layer.
func files(l *Layer) map[string]Node {
	all := names(l)
	maps.DeleteFunc(all, func(_ string, n Node) bool { return l.Attr(n).Mode&unix.S_IFMT != unix.S_IFREG })
	return all
}

func read(l *Layer, n Node) (string, error) {
	var b bytes.Buffer
	_, err := io.Copy(&b, readerOf(context.Background(), l, n))
	return b.String(), err
}

func readerOf(ctx context.Context, l *Layer, n Node) io.Reader {
	return io.NewSectionReader(readerAt(func(p []byte, off int64) (int, error) { return l.ReadAt(ctx, n, p, off) }), 0, l.Attr(n).Size+1)
}

type readerAt func(p []byte, off int64) (int, error)

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r(p, off) }

// contentsOf are the contents of the files of a tar by their paths.
func contentsOf(t testing.TB, p []byte) map[string]string {
	all := map[string]string{}
	r := tar.NewReader(bytes.NewReader(p))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		require.NoError(t, err)
		name := path.Clean("/" + h.Name)[1:]
		delete(all, name)
		switch h.Typeflag {
		case tar.TypeReg:
			contents, err := io.ReadAll(r)
			require.NoError(t, err)
			all[name] = string(contents)
		case tar.TypeLink:
			if contents, ok := all[path.Clean("/" + h.Linkname)[1:]]; ok {
				all[name] = contents
			}
		}
	}
}

func TestContentsAreThoseOfTheTar(t *testing.T) {
	for name, entries := range hardTars() {
		t.Run(name, func(t *testing.T) {
			p := tarOf(t, entries...)
			want := contentsOf(t, p)
			for _, opts := range []estargz.Options{{Level: 1}, {Level: 1, ChunkSize: 10_000}, {Level: 1, MinChunkSize: 10_000}} {
				b := convert(t, opts, p)
				l := addedTo(t, openStore(t), b)
				f := &fake{data: b.data, window: 20_000}
				l.Connect(f.all())
				for name, n := range files(l) {
					got, err := read(l, n)
					require.NoError(t, err, name)
					require.True(t, want[name] == got, name)
				}
				readAnywhere(t, l, want)
				require.NoError(t, l.Fill(t.Context()))
				s := l.Stats()
				require.Equal(t, s.Chunks, s.Present)
				require.Equal(t, s.Size, s.Here)
				require.NoError(t, s.Failure)
			}
		})
	}
}

func readAnywhere(t *testing.T, l *Layer, want map[string]string) {
	r := rand.New(rand.NewPCG(1, 2))
	for name, n := range files(l) {
		size := len(want[name])
		for range 5 {
			off, p := r.IntN(size+10), make([]byte, r.IntN(size+10))
			got, err := l.ReadAt(t.Context(), n, p, int64(off))
			end := min(off+len(p), size)
			if off >= size || off+len(p) > size {
				require.ErrorIs(t, err, io.EOF)
			} else {
				require.NoError(t, err)
			}
			require.Equal(t, max(end-off, 0), got)
			require.True(t, off >= size || want[name][off:end] == string(p[:got]))
		}
	}
}

func TestReadRefuses(t *testing.T) {
	l := addedTo(t, openStore(t), blobOf(t, estargz.Options{}, file("f", "x"), dir("d"), symlink("s", "f")))
	for _, name := range []string{"d", "s"} {
		_, err := l.ReadAt(t.Context(), find(t, l, name), make([]byte, 1), 0)
		require.ErrorIs(t, err, fs.ErrInvalid)
	}
	_, err := l.ReadAt(t.Context(), find(t, l, "f"), make([]byte, 1), -1)
	require.ErrorIs(t, err, fs.ErrInvalid)
	_, err = l.ReadAt(t.Context(), find(t, l, "f"), make([]byte, 1), 0)
	require.ErrorContains(t, err, "layer "+l.Key().Blob.String()+": its contents are not all here, and no registry is known")
}

// TestOneRequestForManyFiles reads what one request brought.
func TestOneRequestForManyFiles(t *testing.T) {
	var entries []tarEntry
	for i := range 500 {
		entries = append(entries, file(fmt.Sprintf("%03d", i), text(uint64(i), 2000)))
	}
	b := blobOf(t, estargz.Options{}, entries...)
	s := openStore(t)
	l := addedTo(t, s, b)
	f := &fake{data: b.data, window: 100_000}
	l.Connect(f.all())
	_, err := read(l, find(t, l, "010"))
	require.NoError(t, err)
	asked := f.asked()
	require.Len(t, asked, 1)
	require.InDelta(t, 100_000, asked[0].n, 2000)
	k := l.index.chunk(10)
	require.Equal(t, k.Offset, asked[0].off)
	for i := 10; i < 60; i++ {
		got, err := read(l, find(t, l, fmt.Sprintf("%03d", i)))
		require.NoError(t, err)
		require.Equal(t, text(uint64(i), 2000), got)
	}
	require.Len(t, f.asked(), 1)
	// What is here already is not asked for again,
	f.window = 300_000
	_, err = read(l, find(t, l, "000"))
	require.NoError(t, err)
	asked = f.asked()
	require.Len(t, asked, 2)
	require.Equal(t, span{l.index.chunk(0).Offset, k.Offset - l.index.chunk(0).Offset}, asked[1])
	// unless it is little.
	f.window = 1
	_, err = read(l, find(t, l, "110"))
	require.NoError(t, err)
	f.window = 100_000
	_, err = read(l, find(t, l, "100"))
	require.NoError(t, err)
	for i := 100; i < 140; i++ {
		_, err = read(l, find(t, l, fmt.Sprintf("%03d", i)))
		require.NoError(t, err)
	}
	require.Len(t, f.asked(), 4)
}

func TestConcurrentReadersFetchOnce(t *testing.T) {
	contents := map[string]string{"a": text(1, 3<<20), "b": text(2, 5000)}
	b := blobOf(t, estargz.Options{}, file("a", contents["a"]), file("b", contents["b"]))
	synctest.Test(t, func(t *testing.T) {
		l := addedTo(t, openStore(t), b)
		release := make(chan struct{})
		f := &fake{data: b.data, window: 1 << 20, answer: func(_ context.Context, _ int, p []byte) (io.ReadCloser, error) {
			<-release
			return io.NopCloser(bytes.NewReader(p)), nil
		}}
		l.Connect(f.all())
		var readers sync.WaitGroup
		for i := range 50 {
			readers.Go(func() {
				name := string("ab"[i%2])
				got, err := read(l, find(t, l, name))
				require.NoError(t, err)
				require.True(t, got == contents[name])
			})
		}
		synctest.Wait()
		close(release)
		readers.Wait()
		sum := int64(0)
		for _, r := range f.asked() {
			sum += r.n
		}
		require.LessOrEqual(t, sum, l.size)
		require.EqualValues(t, sum, l.Stats().Fetched)
	})
}

// TestReadersGo has readers that are killed while they wait. The others, and
// the bytes under way, are not lost.
func TestReadersGo(t *testing.T) {
	b := blobOf(t, estargz.Options{}, file("a", text(1, 5000)))
	synctest.Test(t, func(t *testing.T) {
		l := addedTo(t, openStore(t), b)
		release := make(chan struct{})
		f := &fake{data: b.data, answer: func(ctx context.Context, _ int, p []byte) (io.ReadCloser, error) {
			select {
			case <-release:
				return io.NopCloser(bytes.NewReader(p)), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}}
		l.Connect(f.all())
		n := find(t, l, "a")
		ctx, cancel := context.WithCancelCause(t.Context())
		killed := errors.New("killed")
		var first, second sync.WaitGroup
		for range 2 { // the first one asked, the second one waits
			first.Go(func() {
				_, err := l.ReadAt(ctx, n, make([]byte, 10), 0)
				require.ErrorIs(t, err, killed)
			})
			synctest.Wait()
		}
		second.Go(func() {
			got, err := read(l, n)
			require.NoError(t, err)
			require.Equal(t, text(1, 5000), got)
		})
		synctest.Wait()
		cancel(killed)
		first.Wait()
		close(release)
		second.Wait()
		require.Len(t, f.asked(), 1)
	})
}

func TestBackingAndSmall(t *testing.T) {
	b := blobOf(t, estargz.Options{ChunkSize: 300_000}, file("large", text(1, 1<<20)), file("small", text(2, 1<<20-1)), file("empty", ""), dir("d"))
	s := openStore(t)
	l := addedTo(t, s, b)
	f := &fake{data: b.data}
	l.Connect(f.all())
	large, small := find(t, l, "large"), find(t, l, "small")
	for _, n := range []Node{large, small, find(t, l, "d")} {
		_, ok := l.Backing(n)
		require.False(t, ok)
		_, ok = l.Small(n)
		require.False(t, ok)
	}
	p, ok := l.Small(find(t, l, "empty"))
	require.True(t, ok)
	require.Empty(t, p)
	_, err := l.ReadAt(t.Context(), large, make([]byte, 1), 0)
	require.NoError(t, err)
	_, err = l.ReadAt(t.Context(), small, make([]byte, 1), 1<<20-2)
	require.NoError(t, err)
	_, ok = l.Backing(large)
	require.False(t, ok, "the first chunk is not all")
	_, ok = l.Small(small)
	require.False(t, ok)
	require.NoError(t, l.Fill(t.Context()))
	file, ok := l.Backing(large)
	require.True(t, ok)
	defer file.Close()
	got, err := io.ReadAll(file)
	require.NoError(t, err)
	require.Equal(t, text(1, 1<<20), string(got))
	_, err = file.Write([]byte("x"))
	require.Error(t, err)
	_, ok = l.Backing(small)
	require.False(t, ok)
	_, ok = l.Small(large)
	require.False(t, ok)
	p, ok = l.Small(small)
	require.True(t, ok)
	require.Equal(t, text(2, 1<<20-1), string(p))
}

func TestRestart(t *testing.T) {
	b := blobOf(t, estargz.Options{}, file("large", text(1, 3<<20)), file("small", text(2, 10_000)), file("other", text(3, 100_000)))
	root := t.TempDir()
	s, err := Open(root, Options{})
	require.NoError(t, err)
	l := addedTo(t, s, b)
	f := &fake{data: b.data}
	l.Connect(f.all())
	for _, name := range []string{"large", "small"} {
		_, err := read(l, find(t, l, name))
		require.NoError(t, err)
	}
	before, disk := l.Stats(), l.Disk()
	require.NoError(t, s.Close())
	_, err = read(l, find(t, l, "small"))
	require.ErrorIs(t, err, os.ErrClosed)

	require.NoError(t, os.MkdirAll(root+"/tmp/add-123/large", 0o700))
	s, err = Open(root, Options{})
	require.NoError(t, err)
	defer s.Close()
	require.NoDirExists(t, root+"/tmp/add-123")
	keys, err := s.Keys()
	require.NoError(t, err)
	require.Equal(t, []Key{b.key}, keys)
	l, err = s.Layer(b.key)
	require.NoError(t, err)
	for name, want := range map[string]string{"large": text(1, 3<<20), "small": text(2, 10_000)} {
		got, err := read(l, find(t, l, name))
		require.NoError(t, err)
		require.True(t, want == got)
	}
	_, err = read(l, find(t, l, "other"))
	require.ErrorContains(t, err, "no registry is known")
	after := l.Stats()
	require.Equal(t, before.Present, after.Present)
	require.Equal(t, before.Here, after.Here)
	require.Equal(t, disk, l.Disk())
}
