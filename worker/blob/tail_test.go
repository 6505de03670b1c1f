package blob

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTail(t *testing.T) {
	blob := contents(1000)
	for name, c := range map[string]struct {
		trouble trouble
		want    []string // ranges of the first read, and of another blob's
		again   []string
	}{
		"in one request": {nil, []string{"bytes=-100"}, []string{"bytes=-100"}},
		"ignored, with a size": {unranged(true),
			[]string{"bytes=-100", "bytes=900-999"}, []string{"bytes=0-0", "bytes=900-999"}},
		"refused, with a size": {ifSuffix(status(416, "Content-Range", "bytes */1000")),
			[]string{"bytes=-100", "bytes=900-999"}, []string{"bytes=0-0", "bytes=900-999"}},
		"sizes are not told again": {func(w http.ResponseWriter, r *http.Request) bool {
			switch r.Header.Get("Range") {
			case "bytes=900-999":
				w.Header().Set("Content-Range", "bytes 900-999/*")
				w.WriteHeader(206)
				w.Write(blob[900:])
				return true
			case "bytes=-100":
				return status(416, "Content-Range", "bytes */1000")(w, r)
			}
			return false
		}, []string{"bytes=-100", "bytes=900-999"}, []string{"bytes=0-0", "bytes=900-999"}},
		"piece by piece": {func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") == "bytes=900-999" {
				r.Header.Set("Range", "bytes=900-949")
			}
			return isSuffix(r) && status(416, "Content-Range", "bytes */1000")(w, r)
		}, []string{"bytes=-100", "bytes=900-999", "bytes=950-999"}, []string{"bytes=0-0", "bytes=900-999", "bytes=950-999"}},
		"refused": {ifSuffix(status(416)),
			[]string{"bytes=-100", "bytes=0-0", "bytes=900-999"}, []string{"bytes=0-0", "bytes=900-999"}},
		"a bad request": {ifSuffix(status(400)),
			[]string{"bytes=-100", "bytes=0-0", "bytes=900-999"}, []string{"bytes=0-0", "bytes=900-999"}},
		"not implemented": {ifSuffix(status(501)),
			[]string{"bytes=-100", "bytes=0-0", "bytes=900-999"}, []string{"bytes=0-0", "bytes=900-999"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, blob)
			if c.trouble != nil {
				r.troubles = []trouble{c.trouble}
			}
			l := NewLine(impatient)
			for _, want := range [][]string{c.want, c.again} {
				before := len(r.seen())
				p, size, err := l.Open(r.digest(), source(r.host())).Tail(t.Context(), 100)
				require.NoError(t, err)
				require.EqualValues(t, 1000, size)
				require.Equal(t, blob[900:], p)
				require.Equal(t, want, r.ranges()[before:])
			}
			require.Zero(t, l.Stats().Running)
		})
	}
}

func ifSuffix(f trouble) trouble {
	return func(w http.ResponseWriter, r *http.Request) bool { return isSuffix(r) && f(w, r) }
}

func TestTailOfAShortBlob(t *testing.T) {
	blob := contents(10)
	for name, c := range map[string]trouble{
		"a range": func(http.ResponseWriter, *http.Request) bool { return false },
		"whole":   unranged(true),
		"refused": ifSuffix(status(416)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, blob, c)
			p, size, err := r.open(impatient).Tail(t.Context(), 100)
			require.NoError(t, err)
			require.EqualValues(t, 10, size)
			require.Equal(t, blob, p)
			if name != "refused" {
				require.Len(t, r.seen(), 1)
			}
		})
	}
}

func TestTailThroughFaults(t *testing.T) {
	const size = 300_000
	blob := contents(size)
	for name, f := range map[string]trouble{
		"server errors":        first(2, status(500)),
		"truncated":            first(2, cut(blob, 50_000, truncate)),
		"stalled":              first(1, cut(blob, 50_000, silence)),
		"another range":        first(1, partial("bytes 0-9/300000", 10)),
		"of an unknown size":   first(1, partial("bytes 200000-299999/*", 100_000)),
		"more than asked for":  first(1, partial("bytes 0-299999/300000", size)),
		"refused then failing": after(1, first(2, status(503))),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, blob, f)
			p, n, err := r.open(Options{Stall: 200 * time.Millisecond}).Tail(t.Context(), 100_000)
			require.NoError(t, err)
			require.EqualValues(t, size, n)
			require.Equal(t, blob[200_000:], p)
		})
	}
}

func TestTailErrors(t *testing.T) {
	for name, c := range map[string]struct {
		trouble trouble
		n       int64
		says    string
	}{
		"not found":        {status(404), 100, "404 Not Found"},
		"nothing asked":    {status(404), 0, "0 bytes asked for"},
		"an empty blob":    {status(416, "Content-Range", "bytes */0"), 100, "the size of the blob is 0"},
		"an unknown size":  {partial("bytes 0-0/*", 1), 100, "the size of the blob is -1"},
		"another, smaller": {partial("bytes 0-0/1", 1), 100, "0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, contents(10), c.trouble)
			b := r.open(impatient)
			if name == "an unknown size" {
				b.line.peer(r.name()).refusedSuffix()
			}
			p, size, err := b.Tail(t.Context(), c.n)
			if name == "another, smaller" {
				require.NoError(t, err)
				require.EqualValues(t, 1, size)
				require.Len(t, p, 1)
				return
			}
			require.ErrorContains(t, err, c.says)
		})
	}
}

// A blob whose server knows no ranges is downloaded once, whatever is read of
// it, by how many.
func TestUnranged(t *testing.T) {
	blob := contents(3 << 20)
	dir := t.TempDir()
	r := serve(t, blob, unranged(false))
	b := r.open(Options{TempDir: dir, Deadline: time.Nanosecond})
	var wg sync.WaitGroup
	for i := range int64(20) {
		wg.Go(func() {
			got, err := read(t.Context(), b.With(Priority(i%3)), i*100_000, 50_000)
			if err != nil || string(got) != string(blob[i*100_000:][:50_000]) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, len(blob), b.spool.have)
	wantRange(t, b, blob, 0, int64(len(blob)))
	p, size, err := b.Tail(t.Context(), 100)
	require.NoError(t, err)
	require.EqualValues(t, len(blob), size)
	require.Equal(t, blob[len(blob)-100:], p)
	require.Less(t, b.line.Stats().Bytes, int64(len(blob)+4<<20), "those that came side by side were cut off")
	require.Zero(t, b.line.Stats().Running)

	files, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Empty(t, files)

	_, err = read(t.Context(), b.With(Wanted), int64(len(blob)), 1)
	require.ErrorIs(t, err, errRange)
}

// Whoever wants something waits for the rest of the tail, too.
func TestUnrangedTail(t *testing.T) {
	blob := contents(1 << 20)
	r := serve(t, blob, unranged(false))
	b := r.open(impatient)
	p, size, err := b.Tail(t.Context(), 1000)
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, size)
	require.Equal(t, blob[1<<20-1000:], p)
	wantRange(t, b, blob, 0, 1000)
	require.Len(t, r.seen(), 2, "one for the suffix, one for the blob")
}

// A download in the background is hurried when somebody waits for it.
func TestUnrangedInTheBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := contents(1 << 20)
		h := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			sendBlob(w, r, blob)
		}}
		b := NewLine(Options{TempDir: t.TempDir()}).Open(someDigest, source(h.host()))
		other := &turn{queue: &b.line.queue, priority: Wanted, host: "registry.example"}
		require.NoError(t, other.take(t.Context()))
		defer other.release()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := read(t.Context(), b.With(Background), 0, 1000)
			require.NoError(t, err)
		})
		time.Sleep(patience + 1)
		start := time.Now()
		wantRange(t, b, blob, 5, 1000)
		require.Less(t, time.Since(start), trickleTime+1)
		wg.Wait()
	})
}

// Bytes that came before the connection broke are kept, and the server may
// have learned ranges in the meantime.
func TestUnrangedThroughFaults(t *testing.T) {
	blob := contents(1 << 20)
	for name, f := range map[string][]trouble{
		"broken":           {unranged(false), first(3, cut(blob, 900_000, truncate))},
		"stalled":          {unranged(false), first(1, cut(blob, 900_000, silence))},
		"ranges next time": {first(1, unranged(false)), first(1, cut(blob, 900_000, truncate))},
		"of unknown length": {unranged(false), func(w http.ResponseWriter, r *http.Request) bool {
			for off := 0; off < len(blob); off += 1 << 18 {
				w.Write(blob[off:][:1<<18])
				http.NewResponseController(w).Flush()
			}
			return true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, blob, f...)
			b := r.open(Options{Stall: 200 * time.Millisecond})
			wantRange(t, b, blob, 500_000, 500_000)
			wantRange(t, b, blob, 0, 1000)
		})
	}
}

func TestUnrangedWithoutRoom(t *testing.T) {
	r := serve(t, contents(1000), unranged(false))
	b := r.open(Options{TempDir: filepath.Join(t.TempDir(), "missing")})
	e := wantError(t, b)
	require.ErrorIs(t, e, os.ErrNotExist)
	require.False(t, e.Temporary())
}

// A blob that is shorter than what came of it is downloaded anew: which of them
// was wrong is not known.
func TestUnrangedAndShorter(t *testing.T) {
	long := contents(1000)
	r := serve(t, contents(500), unranged(false), first(1, cut(long, 800, truncate)))
	b := r.open(Options{TempDir: t.TempDir()})
	wantRange(t, b, contents(500), 0, 500)
	require.Len(t, r.seen(), 3)
}

// Wrong bytes are not kept.
func TestUnrangedCorrupt(t *testing.T) {
	blob := contents(1000)
	bad, good := serve(t, contents(1001), unranged(false)), serve(t, blob, unranged(false))
	b := NewLine(impatient).Open(good.digest(), source(bad.host(), good.host()))
	rc, err := b.With(Wanted).Range(t.Context(), 0, 10)
	require.NoError(t, err)
	_, err = rc.Read(make([]byte, 1))
	require.NoError(t, err)
	rc.(*Stream).Corrupt()
	require.NoError(t, rc.Close())
	wantRange(t, b, blob, 0, 1000)
	require.Len(t, good.seen(), 1)
}

// A page in the place of the blob, such as one to sign in, is not kept, and
// another host is asked.
func TestPageInsteadOfTheBlob(t *testing.T) {
	blob := contents(1000)
	page := func(w http.ResponseWriter, size int) {
		if size >= 0 {
			w.Header().Set("Content-Length", fmt.Sprint(size))
		}
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
		w.Write(make([]byte, max(size, 20)))
	}
	for name, size := range map[string]int{"short": 20, "empty": 0, "of unknown length": -1, "long": 2000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mirror := serve(t, blob, after(1, first(1, func(w http.ResponseWriter, _ *http.Request) bool {
				page(w, size)
				return true
			})))
			origin := serve(t, blob)
			b := NewLine(impatient).Open(origin.digest(), source(mirror.host(), origin.host()))
			wantRange(t, b, blob, 0, 10)
			wantRange(t, b, blob, 500, 100)
			wantRange(t, b, blob, 5, 100)
			require.Len(t, origin.seen(), 2)
			require.False(t, b.spool.complete)

			alone := serve(t, blob, first(1, func(w http.ResponseWriter, _ *http.Request) bool {
				page(w, min(size, 500))
				return true
			}))
			wantRange(t, alone.open(impatient), blob, 500, 100)
		})
	}
}

// A reader that goes away in the middle of the download leaves it to the next.
func TestUnrangedCancelled(t *testing.T) {
	blob := contents(1 << 20)
	half := make(chan struct{})
	r := serve(t, blob, unranged(false), first(1, cut(blob, 500_000, func(_ http.ResponseWriter, r *http.Request) {
		close(half)
		<-r.Context().Done()
	})))
	b := r.open(Options{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-half; cancel() }()
	_, err := read(ctx, b.With(Wanted), 0, 10)
	require.ErrorIs(t, err, context.Canceled)
	wantRange(t, b, blob, 0, 10)
	require.Len(t, r.seen(), 2)
}

// endless answers every range with a body that does not end.
func endless(w http.ResponseWriter, r *http.Request) bool {
	if r != nil {
		w.WriteHeader(http.StatusOK)
	}
	for {
		if _, err := w.Write(make([]byte, 64<<10)); err != nil {
			return true
		}
	}
}

// A body without an end does not fill the disk.
func TestEndless(t *testing.T) {
	t.Parallel()
	r := serve(t, contents(1000), endless)
	b := r.open(impatient)
	const room = 1 << 20
	b.line.spools.left.Store(room)
	e := wantError(t, b)
	require.ErrorIs(t, e, errSpoolFull)
	require.Equal(t, r.name(), e.Host)
	require.False(t, e.Temporary())
	require.LessOrEqual(t, b.spool.have, int64(room))
	b.spool.dropIdle()
	require.EqualValues(t, room, b.line.spools.left.Load())
}

// Nor does one of which the disk has no room for all. Where its size is known, none
// of it is taken.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	blob := contents(1 << 20)
	full := errors.New("the disk is full")
	for name, respond := range map[string]trouble{
		"size known": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
			w.WriteHeader(http.StatusOK)
			w.Write(blob)
			return true
		},
		"size unknown": endless,
	} {
		t.Run(name, func(t *testing.T) {
			r := serve(t, blob, respond)
			opts := impatient
			var most int64
			opts.CheckSpace = func(n int64) error {
				if n > 500_000 || most > 500_000 {
					return full
				}
				most += n
				return nil
			}
			b := r.open(opts)
			e := wantError(t, b)
			require.ErrorIs(t, e, errSpoolFull)
			require.ErrorIs(t, e, full)
			require.False(t, e.Temporary())
			require.Equal(t, name == "size known", b.spool.have == 0)
			require.LessOrEqual(t, b.spool.have, int64(600_000))
			b.spool.dropIdle()
			require.EqualValues(t, maxSpooled, b.line.spools.left.Load())
		})
	}
}

// Where the size of the blob is known, it ends there.
func TestEndlessOfAKnownSize(t *testing.T) {
	t.Parallel()
	blob := contents(1000)
	r := serve(t, blob, after(1, func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusOK)
		w.Write(blob)
		return endless(w, nil)
	}))
	b := r.open(impatient)
	wantRange(t, b, blob, 0, 100)
	wantRange(t, b, blob, 500, 100)
	require.EqualValues(t, 1000, b.spool.have)
}

func (s *spool) dropped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.file == nil
}

// Nor does a download that was given up stay on disk.
func TestBrokenSpoolIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			cut(contents(1000), 500, truncate)(w, r)
		}}
		b := NewLine(Options{TempDir: t.TempDir()}).Open(someDigest, source(h.host()))
		require.ErrorContains(t, wantError(t, b), "unexpected EOF")
		require.False(t, b.spool.dropped())
		time.Sleep(keepSpool + 1)
		require.True(t, b.spool.dropped())
	})
}

// The disk is free again when nobody has read for a while.
func TestSpoolIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := contents(1000)
		h := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			sendBlob(w, r, blob)
		}}
		b := NewLine(Options{TempDir: t.TempDir()}).Open(someDigest, source(h.host()))
		wantRange(t, b, blob, 0, 10)
		rc, err := b.With(Wanted).Range(t.Context(), 0, 1000)
		require.NoError(t, err)
		rc.Read(make([]byte, 1))
		time.Sleep(3 * keepSpool)
		require.False(t, b.spool.dropped(), "somebody reads it")
		require.NoError(t, rc.Close())
		time.Sleep(keepSpool / 2)
		wantRange(t, b, blob, 10, 10)
		require.Equal(t, 1, h.requests())
		time.Sleep(keepSpool + 1)
		require.True(t, b.spool.dropped())
		wantRange(t, b, blob, 20, 10)
		require.Equal(t, 2, h.requests())
	})
}
