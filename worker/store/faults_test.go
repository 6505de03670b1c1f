package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// broken answers like a server that has only some requests right.
func broken(harm func(request int, p []byte) []byte) func(context.Context, int, []byte) (io.ReadCloser, error) {
	return func(_ context.Context, request int, p []byte) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(harm(request, bytes.Clone(p)))), nil
	}
}

func TestCorruptBytesAreNeverRead(t *testing.T) {
	var entries []tarEntry
	for i := range 100 {
		entries = append(entries, file(fmt.Sprintf("small/%03d", i), text(uint64(i), 1+i*100)))
	}
	entries = append(entries, file("large", text(7, 3<<19)))
	p := tarOf(t, entries...)
	want := contentsOf(t, p)
	r := rand.New(rand.NewPCG(3, 4))
	for name, harm := range map[string]func(request int, p []byte) []byte{
		"flipped bits": func(_ int, p []byte) []byte {
			for range 1 + len(p)/20_000 {
				p[r.IntN(len(p))] ^= 1 << r.IntN(8)
			}
			return p
		},
		"truncated": func(_ int, p []byte) []byte { return p[:r.IntN(len(p))] },
		"zeros":     func(_ int, p []byte) []byte { clear(p[r.IntN(len(p)):]); return p },
		"another part": func(_ int, p []byte) []byte {
			return append(p[len(p)/3:], p[:len(p)/3]...)
		},
		"nothing": func(_ int, p []byte) []byte { return nil },
	} {
		for _, opts := range []estargz.Options{{Level: 1, ChunkSize: 100_000}, {Level: 1, MinChunkSize: 30_000}} {
			t.Run(fmt.Sprint(name, opts.MinChunkSize), func(t *testing.T) {
				b := convert(t, opts, p)
				l := addedTo(t, openStore(t), b)
				f := &fake{data: b.data, window: 300_000}
				f.answer = broken(func(request int, p []byte) []byte {
					if request%2 == 1 {
						return p
					}
					return harm(request, p)
				})
				l.Connect(f.all())
				failed := 0
				for name, n := range files(l) {
					got, err := read(l, n)
					if err != nil {
						require.ErrorContains(t, err, "layer "+b.key.Blob.String()+": its chunk at ")
						require.ErrorContains(t, err, "corrupt")
						failed++
					}
					require.True(t, strings.HasPrefix(want[name], got), name)
					require.True(t, err != nil || got == want[name], name)
				}
				require.Zero(t, failed, "three attempts are enough here")
				_, corrupt, _ := f.told()
				require.Positive(t, corrupt)
				require.Positive(t, l.Stats().Corrupt)
			})
		}
	}
}

// TestLyingDigest has a chunk that can never be right. It costs three attempts,
// and nothing else suffers.
func TestLyingDigest(t *testing.T) {
	b := blobOf(t, estargz.Options{}, file("a", text(1, 5000)), file("b", text(2, 6000)), file("c", text(3, 7000)))
	l := addedTo(t, openStore(t), b)
	k := l.index.chunk(1)
	bad := bytes.Clone(b.data)
	clear(bad[k.Offset:k.end()])
	f := &fake{data: bad, window: 1 << 20}
	l.Connect(f.all())
	err := l.Fill(t.Context())
	require.ErrorContains(t, err, fmt.Sprintf("its chunk at %d of the blob: corrupt: gzip: invalid header", k.Offset))
	require.Equal(t, err.Error(), l.Stats().Failure.Error())
	require.Equal(t, 2, l.Stats().Present)
	requests := len(f.asked())
	require.InDelta(t, 4, requests, 1, "one with all, and three for the chunk, if not two waited for the first")
	for name, want := range map[string]string{"a": text(1, 5000), "b": "", "c": text(3, 7000)} {
		got, err := read(l, find(t, l, name))
		require.Equal(t, want == "", err != nil)
		require.Equal(t, want, got)
	}
	for range 5 {
		_, err := read(l, find(t, l, "b"))
		require.ErrorIs(t, err, errCorrupt)
	}
	require.Len(t, f.asked(), requests+3, "who reads it again does not fetch it again at once")
	f.data = b.data
	l.Connect(f.all())
	got, err := read(l, find(t, l, "b"))
	require.NoError(t, err)
	require.Equal(t, text(2, 6000), got)
}

// TestOtherHostIsAskedNext has a host that sends wrong bytes, of which most are
// still to come, until it is told.
func TestOtherHostIsAskedNext(t *testing.T) {
	b := blobOf(t, estargz.Options{ChunkSize: 1 << 18}, file("a", text(1, 3<<20)))
	l := addedTo(t, openStore(t), b)
	arrive := make(chan struct{})
	defer close(arrive)
	f := &fake{data: b.data, window: 1 << 20}
	f.answer = func(_ context.Context, _ int, p []byte) (io.ReadCloser, error) {
		if _, corrupt, _ := f.told(); corrupt > 0 {
			return io.NopCloser(bytes.NewReader(p)), nil
		}
		return io.NopCloser(io.MultiReader(bytes.NewReader(make([]byte, 1000)), waiting(arrive))), nil
	}
	l.Connect(f.all())
	got, err := read(l, find(t, l, "a"))
	require.NoError(t, err)
	require.True(t, got == text(1, 3<<20))
	_, corrupt, _ := f.told()
	require.Equal(t, 1, corrupt)
}

// TestCorruptRunEnds has wrong bytes behind the file that is read. The stream is
// told once: what is buffered of them must not be taken for another host's.
func TestCorruptRunEnds(t *testing.T) {
	const files, size = 40, 20_000
	b := blobOf(t, estargz.Options{Level: estargz.NoCompression}, numbered(files, size)...)
	l := addedTo(t, openStore(t), b)
	f := &fake{data: b.data, window: 1 << 20}
	f.answer = broken(func(request int, p []byte) []byte {
		if request == 0 {
			clear(p[size*2:])
		}
		return p
	})
	l.Connect(f.all())
	check(t, l, size, 0)
	l.ended.Wait()
	_, corrupt, _ := f.told()
	require.Equal(t, 1, corrupt)
	check(t, l, size, 39, 20, 1)
	require.NoError(t, l.Fill(t.Context()))
	_, corrupt, _ = f.told()
	require.Equal(t, 1, corrupt)
}

// TestCorruptionIsForgotten lets a chunk be fetched again after a while.
func TestCorruptionIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s corruption
		require.NoError(t, s.of(1))
		s.add(1, errCorrupt)
		time.Sleep(corruptionLasts - time.Nanosecond)
		require.Equal(t, errCorrupt, s.of(1))
		require.NoError(t, s.of(2))
		time.Sleep(time.Nanosecond)
		require.NoError(t, s.of(1))
		require.Empty(t, s.chunks)
	})
}

// TestRegistryFails passes on why.
func TestRegistryFails(t *testing.T) {
	b := blobOf(t, estargz.Options{ChunkSize: 1000}, file("a", text(1, 5000)))
	s := openStore(t)
	l := addedTo(t, s, b)
	gone := errors.New("registry.example: 403 Forbidden")
	f := &fake{data: b.data, answer: func(context.Context, int, []byte) (io.ReadCloser, error) { return nil, gone }}
	l.Connect(f.all())
	_, err := read(l, find(t, l, "a"))
	require.Equal(t, gone, err)
	require.Len(t, f.asked(), 1, "who fetches blobs has tried enough")
	require.Equal(t, gone, l.Fill(t.Context()))
	require.Equal(t, gone, l.Stats().Failure)
	l.ended.Wait()

	// In the midst of it, what came is kept.
	f.window = 1 << 20
	f.answer = func(_ context.Context, _ int, p []byte) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(p[:len(p)/2]), failing{gone})), nil
	}
	_, err = read(l, find(t, l, "a"))
	require.Equal(t, gone, err)
	require.Positive(t, l.Stats().Present)
	require.Less(t, l.Stats().Present, 5)
	require.Zero(t, l.Stats().Corrupt)
	l.ended.Wait()
	f.answer = nil
	l.Connect(f.all())
	got, err := read(l, find(t, l, "a"))
	require.NoError(t, err)
	require.Equal(t, text(1, 5000), got)
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
