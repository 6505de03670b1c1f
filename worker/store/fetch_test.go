package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// numbered are n files of about that many bytes.
func numbered(n, size int) []tarEntry {
	var entries []tarEntry
	for i := range n {
		entries = append(entries, file(fmt.Sprintf("%03d", i), text(uint64(i), size+i)))
	}
	return entries
}

// check reads files that numbered made.
func check(t testing.TB, l *Layer, size int, numbers ...int) {
	t.Helper()
	for _, i := range numbers {
		got, err := read(l, find(t, l, fmt.Sprintf("%03d", i)))
		require.NoError(t, err)
		require.True(t, got == text(uint64(i), size+i), i)
	}
}

// bytesOf adds up requests.
func asked(fakes ...*fake) (sum int64) {
	for _, f := range fakes {
		for _, r := range f.asked() {
			sum += r.n
		}
	}
	return sum
}

// TestSameChunkIsFetchedOnce reads two layers that share files, one after the
// other.
func TestSameChunkIsFetchedOnce(t *testing.T) {
	shared := append(numbered(50, 3000), file("large", text(99, 2<<20)))
	one := blobOf(t, estargz.Options{ChunkSize: 300_000}, append([]tarEntry{file("one", text(100, 5000))}, shared...)...)
	two := blobOf(t, estargz.Options{ChunkSize: 300_000}, append(shared, file("two", text(200, 5000)))...)
	s := openStore(t)
	l1, l2 := addedTo(t, s, one), addedTo(t, s, two)
	f1, f2 := &fake{data: one.data, window: 200_000}, &fake{data: two.data, window: 200_000}
	l1.Connect(f1.all())
	l2.Connect(f2.all())
	require.NoError(t, l1.Fill(t.Context()))
	check(t, l2, 3000, 7, 3, 49)
	got, err := read(l2, find(t, l2, "large"))
	require.NoError(t, err)
	require.True(t, got == text(99, 2<<20))
	require.Empty(t, f2.asked())
	require.EqualValues(t, 2<<20+3*3000+59, l2.Stats().Copied)
	require.NoError(t, l2.Fill(t.Context()))
	k := l2.index.chunk(l2.index.Chunks - 1)
	require.Equal(t, []span{{k.Offset, int64(k.Length)}}, f2.asked(), "the file that is new")
	file, ok := l2.Backing(find(t, l2, "large"))
	require.True(t, ok)
	require.NoError(t, file.Close())

	// Its copy lives on without the original.
	require.NoError(t, s.Remove(one.key))
	require.NoError(t, s.Remove(one.key))
	check(t, l2, 3000, 7, 20)
}

// TestRebuiltBase has a layer of which every hundredth file is new. Little more
// than that is fetched.
func TestRebuiltBase(t *testing.T) {
	old, rebuilt := numbered(1000, 2000), numbered(1000, 2000)
	for i := 7; i < len(rebuilt); i += 100 {
		rebuilt[i] = file(rebuilt[i].Name, text(uint64(5000+i), 2000))
	}
	one, two := blobOf(t, estargz.Options{}, old...), blobOf(t, estargz.Options{}, rebuilt...)
	s := openStore(t)
	l1, l2 := addedTo(t, s, one), addedTo(t, s, two)
	f1, f2 := &fake{data: one.data, window: 1 << 20}, &fake{data: two.data, window: 1 << 20}
	l1.Connect(f1.all())
	l2.Connect(f2.all())
	require.NoError(t, l1.Fill(t.Context()))
	var changed int64
	for i := 7; i < len(rebuilt); i += 100 {
		changed += int64(l2.index.chunk(l2.index.node(find(t, l2, rebuilt[i].Name)).First).Length)
	}
	check(t, l2, 2000, 6, 8, 500)
	require.NoError(t, l2.Fill(t.Context()))
	require.Equal(t, l2.Stats().Chunks, l2.Stats().Present)
	require.LessOrEqual(t, asked(f2), changed*9/8)
}

// TestSharedChunksInFlight fills two layers with the same files, and reads them,
// while the registry of one does not answer. The other does not wait for that,
// and of what is on its way it fetches little.
func TestSharedChunksInFlight(t *testing.T) {
	const n = 300
	one := blobOf(t, estargz.Options{}, numbered(n, 3000)...)
	two := blobOf(t, estargz.Options{Level: 1}, numbered(n, 3000)...)
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t)
		f1, f2 := &fake{data: one.data, window: 50_000}, &fake{data: two.data, window: 50_000}
		release := make(chan struct{})
		f1.answer = func(_ context.Context, _ int, p []byte) (io.ReadCloser, error) {
			<-release
			return io.NopCloser(bytes.NewReader(p)), nil
		}
		l1, l2 := addedTo(t, s, one), addedTo(t, s, two)
		l1.Connect(f1.all())
		l2.Connect(f2.all())
		done := make(chan error)
		go func() { done <- l1.Fill(t.Context()) }()
		synctest.Wait()
		stuck := asked(f1)
		require.Positive(t, stuck)

		check(t, l2, 3000, 0, 1, 2)
		require.NoError(t, l2.Fill(t.Context()))
		require.Zero(t, l1.Stats().Present)
		require.Equal(t, n, l2.Stats().Present)
		require.LessOrEqual(t, asked(f2), l2.size*9/8)
		close(release)
		require.NoError(t, <-done)
		require.Equal(t, n, l1.Stats().Present)
		require.Equal(t, stuck, asked(f1), "the rest is copied")
		check(t, l1, 3000, 5, 150, 299)
		check(t, l2, 3000, 5, 150, 299)
	})
}

// TestRegistryOfAnotherLayerRefuses reads the same file of two layers at once,
// where the registry of one refuses. Each has its own answer.
func TestRegistryOfAnotherLayerRefuses(t *testing.T) {
	one := blobOf(t, estargz.Options{}, file("a", text(1, 5000)))
	two := blobOf(t, estargz.Options{Level: 1}, file("a", text(1, 5000)))
	gone := errors.New("401 Unauthorized")
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t)
		refuse := make(chan struct{})
		f1, f2 := &fake{data: one.data}, &fake{data: two.data}
		f1.answer = func(context.Context, int, []byte) (io.ReadCloser, error) {
			<-refuse
			return nil, gone
		}
		l1, l2 := addedTo(t, s, one), addedTo(t, s, two)
		l1.Connect(f1.all())
		l2.Connect(f2.all())
		refused := make(chan error)
		go func() {
			_, err := read(l1, find(t, l1, "a"))
			refused <- err
		}()
		synctest.Wait()
		got, err := read(l2, find(t, l2, "a"))
		require.NoError(t, err)
		require.Equal(t, text(1, 5000), got)
		close(refuse)
		require.Equal(t, gone, <-refused)
		got, err = read(l1, find(t, l1, "a"))
		require.NoError(t, err, "it is copied")
		require.Equal(t, text(1, 5000), got)
	})
}

// TestSameFileInOneLayer has many files with the same contents.
func TestSameFileInOneLayer(t *testing.T) {
	var entries []tarEntry
	for i := range 1500 {
		entries = append(entries, file(fmt.Sprintf("%04d", i), "# the same in every package\n"))
	}
	b := blobOf(t, estargz.Options{Level: 1}, entries...)
	l := addedTo(t, openStore(t), b)
	f := &fake{data: b.data, window: 10_000}
	l.Connect(f.all())
	require.NoError(t, l.Fill(t.Context()))
	require.Len(t, f.asked(), 1)
	require.Equal(t, 1500, l.Stats().Present)
	got, err := read(l, find(t, l, "1499"))
	require.NoError(t, err)
	require.Equal(t, "# the same in every package\n", got)
}

// TestPrefetch asks for what is before the landmark, and for no more.
func TestPrefetch(t *testing.T) {
	order := []string{"099", "005", "large", "006"}
	entries := append(numbered(100, 3000), file("large", text(7, 3<<20)))
	b := orderedBlob(t, order, estargz.Options{Level: 1}, entries...)
	l := addedTo(t, openStore(t), b)
	f, none := &fake{data: b.data, window: 4000}, &fake{}
	l.Connect(Blobs{Wanted: none, Prefetch: f, Background: none})
	require.NoError(t, l.Prefetch(t.Context()))
	require.Equal(t, len(order), l.Stats().Present)
	requests := f.asked()
	require.Greater(t, len(requests), 1, "a window at a time")
	for _, r := range requests {
		require.LessOrEqual(t, r.off+r.n, l.index.chunk(l.index.Prefetch).Offset)
	}
	require.NoError(t, l.Prefetch(t.Context()))
	check(t, l, 3000, 99, 5, 6)
	require.Equal(t, requests, f.asked())
	require.Empty(t, none.asked())
	for _, b := range []*testBlob{blobOf(t, estargz.Options{Level: 1}, entries...), orderedBlob(t, nil, estargz.Options{Level: 1}, entries...)} {
		l := addedTo(t, openStore(t), b)
		require.NoError(t, l.Prefetch(t.Context()))
		require.Zero(t, l.Stats().Present)
	}
}

// TestWantedDuringPrefetch reads the last file of a prefetch, which does not wait
// for the others, and one that is none of it, whose neighbours nobody needs now.
func TestWantedDuringPrefetch(t *testing.T) {
	var order []string
	for i := range 50 {
		order = append(order, fmt.Sprintf("%03d", i))
	}
	b := orderedBlob(t, order, estargz.Options{}, numbered(100, 3000)...)
	l := addedTo(t, openStore(t), b)
	wanted, slow := &fake{data: b.data, window: 100_000}, &fake{data: b.data, window: 4000}
	arrive := make(chan struct{})
	slow.answer = func(_ context.Context, _ int, p []byte) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(waiting(arrive), bytes.NewReader(p))), nil
	}
	l.Connect(Blobs{Wanted: wanted, Prefetch: slow, Background: slow})
	done := make(chan error)
	go func() { done <- l.Prefetch(t.Context()) }()
	require.Eventually(t, func() bool { return len(slow.asked()) == prefetchers }, time.Minute, time.Millisecond)
	check(t, l, 3000, 80)
	require.Less(t, asked(wanted), int64(4000))
	check(t, l, 3000, 49)
	close(arrive)
	require.NoError(t, <-done)
	check(t, l, 3000, 90)
	require.Greater(t, wanted.asked()[2].n, int64(10_000))
}

// TestFillFollowsReaders goes on where somebody reads.
func TestFillFollowsReaders(t *testing.T) {
	b := blobOf(t, estargz.Options{}, numbered(400, 3000)...)
	synctest.Test(t, func(t *testing.T) {
		l := addedTo(t, openStore(t), b)
		wanted, back := &fake{data: b.data, window: 10_000}, &fake{data: b.data, window: 40_000}
		step := make(chan struct{})
		back.answer = func(_ context.Context, _ int, p []byte) (io.ReadCloser, error) {
			<-step
			return io.NopCloser(bytes.NewReader(p)), nil
		}
		l.Connect(Blobs{Wanted: wanted, Prefetch: wanted, Background: back})
		done := make(chan error)
		go func() { done <- l.Fill(t.Context()) }()
		synctest.Wait()
		require.Len(t, back.asked(), fillers, "while one arrives, the next ones are asked for")
		check(t, l, 3000, 200)
		step <- struct{}{}
		synctest.Wait()
		last, read := back.asked()[fillers], wanted.asked()[0]
		require.Less(t, last.off, read.off)
		require.Greater(t, last.off, read.off-40_000)
		close(step)
		require.NoError(t, <-done)
		require.Equal(t, 400, l.Stats().Present)
		require.LessOrEqual(t, asked(wanted, back), l.size*9/8)
	})
}

// TestFillNearReaders leaves the line to who waits for one file after the other,
// but for what is near the last one.
func TestFillNearReaders(t *testing.T) {
	const files, size = 40, 1 << 20
	b := blobOf(t, estargz.Options{Level: estargz.NoCompression}, numbered(files, size)...)
	synctest.Test(t, func(t *testing.T) {
		var calm atomic.Bool
		s, err := Open(t.TempDir(), Options{Pace: func(context.Context) (soon bool, err error) { return !calm.Load(), nil }})
		require.NoError(t, err)
		defer s.Close()
		l := addedTo(t, s, b)
		f, back := &fake{data: b.data, window: size}, &fake{data: b.data, window: size}
		l.Connect(Blobs{Wanted: f, Prefetch: f, Background: back})
		check(t, l, size, 20)
		done := make(chan error)
		go func() { done <- l.Fill(t.Context()) }()
		near := func(file int) {
			time.Sleep(10 * lookAgain)
			synctest.Wait()
			for c := range uint32(files) {
				distance := l.index.chunk(c).Offset - l.index.chunk(uint32(file+1)).Offset
				switch {
				case distance >= 0 && distance < nearBy:
					require.True(t, l.present.has(c), c)
				case file == 20 && (distance < -nearBy || distance > nearBy):
					require.False(t, l.present.has(c), c)
				}
			}
		}
		near(20)
		check(t, l, size, 2) // whose neighbours are far from the first one
		near(2)
		require.Empty(t, back.asked())
		require.Less(t, l.Stats().Present, files)

		calm.Store(true)
		require.NoError(t, <-done)
		require.Equal(t, files, l.Stats().Present)
	})
}

func TestFillEndsWithItsContext(t *testing.T) {
	b := blobOf(t, estargz.Options{}, numbered(100, 3000)...)
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t)
		l := addedTo(t, s, b)
		f := &fake{data: b.data, window: 10_000}
		f.answer = func(ctx context.Context, request int, p []byte) (io.ReadCloser, error) {
			if request == 0 {
				return io.NopCloser(bytes.NewReader(p)), nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		l.Connect(f.all())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Fill(ctx) }()
		synctest.Wait()
		// A reader of a chunk that is on its way does not end with it.
		read := make(chan struct{})
		go func() {
			check(t, l, 3000, l.Stats().Present)
			close(read)
		}()
		synctest.Wait()
		f.answer = nil
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
		<-read
		require.NoError(t, l.Stats().Failure)
	})
}

// TestHurry reads what a prefetch is about to bring.
func TestHurry(t *testing.T) {
	b := orderedBlob(t, []string{"000", "001", "002"}, estargz.Options{}, numbered(10, 3000)...)
	synctest.Test(t, func(t *testing.T) {
		l := addedTo(t, openStore(t), b)
		arrive := make(chan struct{})
		f, wanted := &fake{data: b.data}, &fake{data: b.data}
		f.answer = func(_ context.Context, _ int, p []byte) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(p[:100]), waiting(arrive), bytes.NewReader(p[100:]))), nil
		}
		l.Connect(Blobs{Wanted: wanted, Prefetch: f, Background: f})
		done := make(chan error)
		go func() { done <- l.Prefetch(t.Context()) }()
		synctest.Wait()
		_, _, hurried := f.told()
		require.Zero(t, hurried)
		go func() { check(t, l, 3000, 2); done <- nil }()
		synctest.Wait()
		_, _, hurried = f.told()
		require.Equal(t, 1, hurried)
		require.Equal(t, uint32(3), l.cursor.Load(), "behind the file that is waited for")
		close(arrive)
		require.NoError(t, <-done)
		require.NoError(t, <-done)
		require.Empty(t, wanted.asked())
	})
}

// TestRelax reads a file, which its neighbours come behind in no hurry.
func TestRelax(t *testing.T) {
	b := blobOf(t, estargz.Options{}, file("first", text(1, 500_000)), file("second", text(2, 500_000)))
	l := addedTo(t, openStore(t), b)
	f := &fake{data: b.data, window: 1 << 20}
	l.Connect(f.all())
	_, err := read(l, find(t, l, "first"))
	require.NoError(t, err)
	_, err = read(l, find(t, l, "second"))
	require.NoError(t, err)
	require.Len(t, f.relaxed, 1)
	require.Less(t, f.relaxed[0], f.read*2/3)
}

// TestHurryBeforeRelax waits for a file whose range is on its way for another
// one, which comes first.
func TestHurryBeforeRelax(t *testing.T) {
	b := blobOf(t, estargz.Options{}, numbered(10, 3000)...)
	synctest.Test(t, func(t *testing.T) {
		l := addedTo(t, openStore(t), b)
		first, rest := make(chan struct{}), make(chan struct{})
		f := &fake{data: b.data, window: 1 << 20}
		f.answer = func(_ context.Context, _ int, p []byte) (io.ReadCloser, error) {
			n := l.index.chunk(1).Offset
			return io.NopCloser(io.MultiReader(waiting(first), bytes.NewReader(p[:n]), waiting(rest), bytes.NewReader(p[n:]))), nil
		}
		l.Connect(f.all())
		var readers sync.WaitGroup
		for _, i := range []int{0, 5} {
			readers.Go(func() { check(t, l, 3000, i) })
			synctest.Wait()
		}
		_, _, hurried := f.told()
		require.Equal(t, 1, hurried)
		close(first)
		synctest.Wait()
		require.Len(t, f.relaxed, 1)
		_, _, hurried = f.told()
		require.Equal(t, 2, hurried, "again after Relax")
		close(rest)
		readers.Wait()
	})
}

// waiting is a reader that has nothing, but not at once.
type waiting chan struct{}

func (w waiting) Read([]byte) (int, error) {
	<-w
	return 0, io.EOF
}

// TestRemovedIsNotOpened opens a layer again and again while it is removed.
func TestRemovedIsNotOpened(t *testing.T) {
	b := blobOf(t, estargz.Options{Level: 1}, numbered(3, 100)...)
	s := openStore(t)
	for range 50 {
		addedTo(t, s, b)
		stop := make(chan struct{})
		var opener sync.WaitGroup
		opener.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = s.Layer(b.key)
				}
			}
		})
		require.NoError(t, s.Remove(b.key))
		_, err := s.Layer(b.key)
		close(stop)
		opener.Wait()
		require.ErrorIs(t, err, fs.ErrNotExist)
	}
}

// TestRemoveEndsWhatIsUnderWay removes a layer that is being read and filled.
func TestRemoveEndsWhatIsUnderWay(t *testing.T) {
	b := blobOf(t, estargz.Options{}, numbered(100, 3000)...)
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t)
		l := addedTo(t, s, b)
		f := &fake{data: b.data, window: 10_000}
		f.answer = func(ctx context.Context, request int, p []byte) (io.ReadCloser, error) {
			if request > 0 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return io.NopCloser(bytes.NewReader(p)), nil
		}
		l.Connect(f.all())
		check(t, l, 3000, 0)
		done := make(chan error)
		go func() { done <- l.Fill(t.Context()) }()
		go func() { _, err := read(l, find(t, l, "050")); done <- err }()
		synctest.Wait()
		require.NoError(t, s.Remove(b.key))
		require.Error(t, <-done)
		require.Error(t, <-done)
		require.NoDirExists(t, l.dir)
		_, err := read(l, find(t, l, "050"))
		require.ErrorContains(t, err, "file already closed")
		require.Len(t, walk(t, l), 101, "the tree stays")
		keys, err := s.Keys()
		require.NoError(t, err)
		require.Empty(t, keys)

		// It can come again.
		l = addedTo(t, s, b)
		f.answer = nil
		l.Connect(f.all())
		check(t, l, 3000, 50)
	})
}
