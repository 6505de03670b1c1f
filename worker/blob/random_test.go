package blob

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/seed"
)

// randomly does one thing or another, in a quarter of the requests.
func randomly(random *rand.Rand, troubles ...trouble) trouble {
	return func(w http.ResponseWriter, r *http.Request) bool {
		i := random.IntN(4 * len(troubles))
		return i < len(troubles) && troubles[i](w, r)
	}
}

// Many readers at all priorities over hosts that fail in all ways get what
// they asked for, and leave nothing behind: cancelled, closed or read to the
// end.
func TestEverythingAtOnce(t *testing.T) {
	random := seed.New(t)
	blob := contents(2 << 20)
	cutAt := func(n int, end func(http.ResponseWriter, *http.Request)) trouble { return cut(blob, n, end) }
	anything := randomly(random,
		status(503), status(429), status(404), status(401), cutAt(0, reset), cutAt(70_000, reset), cutAt(5000, truncate),
		cutAt(9000, silence), partial("bytes 1-2/3", 2), partial("", 5), unranged(false),
	)
	links := serveLinks(t, blob, 403)
	links.storage.troubles = append(links.storage.troubles, anything, func(http.ResponseWriter, *http.Request) bool {
		links.mu.Lock()
		defer links.mu.Unlock()
		if random.IntN(5) == 0 {
			links.signature++
		}
		return false
	})
	mirror := serve(t, blob, anything)
	l := NewLine(Options{Connections: 4, BytesInFlight: 1 << 20, Stall: 50 * time.Millisecond, TempDir: t.TempDir()})
	s := source(mirror.host(), links.registry.host())

	var wg sync.WaitGroup
	for range 4 {
		b := l.Open(links.registry.digest(), s)
		for i := range 8 {
			wg.Go(func() {
				for range 5 {
					readSomehow(t, random, b, Priority(i%3), blob)
				}
				if i == 0 {
					b.Add(s)
				}
			})
		}
	}
	wg.Wait()
	stats := l.Stats()
	require.Zero(t, stats.Running)
	require.Zero(t, stats.Waiting)
	require.NotZero(t, stats.Retries)

	mirror.Close()
	links.registry.Close()
	links.storage.Close()
	eventually(t, func() bool {
		return !strings.Contains(stacks(), "blob.(*Stream)") && !strings.Contains(stacks(), "net/http.(*persistConn)")
	})
}

func readSomehow(t *testing.T, random *rand.Rand, b *Blob, p Priority, blob []byte) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	off := random.Int64N(int64(len(blob)))
	n := random.Int64N(min(int64(len(blob))-off, 400_000) + 1)
	rc, err := b.With(p).Range(ctx, off, n)
	if err != nil {
		t.Error(err)
		return
	}
	defer rc.Close()
	var want int64
	switch random.IntN(6) {
	case 0:
		time.AfterFunc(time.Duration(random.IntN(50))*time.Millisecond, cancel)
	case 1:
		want = random.Int64N(n + 1)
	case 2:
		go rc.(*Stream).Hurry()
		fallthrough
	default:
		want = n
	}
	got, err := io.ReadAll(io.LimitReader(rc, want))
	if !bytes.Equal(got, blob[off:][:len(got)]) {
		t.Errorf("%d bytes at %d are wrong", n, off)
	}
	// Both hosts may refuse by chance, twice.
	if e, refused := err.(*Error); err != nil && ctx.Err() == nil && !(refused && !e.Temporary()) {
		t.Error(err)
	}
}

func stacks() string {
	buf := make([]byte, 4<<20)
	return string(buf[:runtime.Stack(buf, true)])
}
