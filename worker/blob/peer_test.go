package blob

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func scan(t testing.TB, header string, from, to *int64) {
	if _, err := fmt.Sscanf(header, "bytes=%d-%d", from, to); err != nil {
		t.Errorf("Range %q: %v", header, err)
	}
}

// A shapedLine is one that answers take a round trip over and share the rate
// of, piece by piece. Its bytes are zeros.
type shapedLine struct {
	roundTrip time.Duration
	rate      float64 // bytes a second

	mu   sync.Mutex
	free time.Time
}

func (l *shapedLine) serve(w http.ResponseWriter, r *http.Request) {
	time.Sleep(l.roundTrip)
	var from, to int64
	fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", from, to))
	w.Header().Set("Content-Length", fmt.Sprint(to-from+1))
	w.WriteHeader(http.StatusPartialContent)
	piece := make([]byte, 32<<10)
	for left := to - from + 1; left > 0; left -= int64(len(piece)) {
		piece = piece[:min(left, int64(len(piece)))]
		time.Sleep(time.Until(l.send(len(piece))))
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}

// send says when so many bytes are through.
func (l *shapedLine) send(n int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / l.rate * 1e9))
	return l.free
}

// The line is measured by what is read over it, and follows when it changes.
func TestMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &shapedLine{roundTrip: 80 * time.Millisecond, rate: 25e6}
		h := &inProcess{serve: line.serve, dial: time.Second}
		b := NewLine(Options{}).Open(someDigest, source(h.host()))
		v := b.With(Wanted)
		require.EqualValues(t, 1e6, v.Window(), "before anything was measured")
		for range 8 {
			timeOf(t, v, 0, v.Window())
		}
		roundTrip, bandwidth := b.line.peer("registry.example").line()
		require.InEpsilon(t, 0.08, roundTrip.Seconds(), 0.01)
		require.InEpsilon(t, 25e6, bandwidth, 0.01)
		require.InEpsilon(t, 2e6, v.Window(), 0.02)
		require.InEpsilon(t, 8e6, b.With(Background).Window(), 0.02)

		synctest.Wait()
		line.roundTrip, line.rate = 5*time.Millisecond, 500e6
		for range 30 {
			timeOf(t, v, 0, v.Window())
		}
		roundTrip, bandwidth = b.line.peer("registry.example").line()
		require.InEpsilon(t, 0.005, roundTrip.Seconds(), 0.05)
		require.InEpsilon(t, 500e6, bandwidth, 0.05)
	})
}

// Time in which a stream gave way, or its reader did something else for what
// is wanted, says nothing about the line.
func TestPausesAreNotMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &shapedLine{roundTrip: 20 * time.Millisecond, rate: 50e6}
		h := &inProcess{serve: line.serve}
		b := NewLine(Options{}).Open(someDigest, source(h.host()))
		timeOf(t, b.With(Wanted), 0, 1e6)
		_, before := b.line.peer("registry.example").line()

		other := &turn{queue: &b.line.queue, priority: Wanted, host: "registry.example"}
		time.AfterFunc(50*time.Millisecond, func() { other.take(t.Context()) })
		time.AfterFunc(5*time.Second, other.release)
		timeOf(t, b.With(Background), 0, 8<<20)
		_, after := b.line.peer("registry.example").line()
		require.Equal(t, before, after)
	})
}

func TestWindow(t *testing.T) {
	for _, c := range []struct {
		roundTrip                    time.Duration
		bandwidth                    float64
		wanted, prefetch, background int64
	}{
		{20 * time.Millisecond, 50e6, 1e6, 2e6, 4e6},
		{80 * time.Millisecond, 12.5e6, 1e6, 2e6, 4e6},
		{200 * time.Microsecond, 1e9, minWindow, 4e5, 8e5},
		{time.Second, 1e9, maxWindow, maxWindow, maxWindow},
		{time.Millisecond, 1e3, minWindow, minWindow, minWindow},
	} {
		p := &peer{}
		p.waited(c.roundTrip)
		p.carried(int64(c.bandwidth*1000), 1000*time.Second)
		require.InDelta(t, c.wanted, p.window(Wanted), 1)
		require.InDelta(t, c.prefetch, p.window(Prefetch), 1)
		require.InDelta(t, c.background, p.window(Background), 1)
	}
}

// Bodies that fit into the first burst say nothing about bandwidth.
func TestSmallBodiesAreNotMeasured(t *testing.T) {
	p := &peer{}
	p.carried(minSample-1, time.Hour)
	p.carried(minSample, 0)
	_, bandwidth := p.line()
	require.Equal(t, usualBandwidth, bandwidth)
}

// Registries are measured each by itself.
func TestPeersAreApart(t *testing.T) {
	l := NewLine(Options{})
	l.peer("a.example").waited(time.Second)
	roundTrip, _ := l.peer("b.example").line()
	require.Equal(t, usualRoundTrip, roundTrip)
	require.Same(t, l.peer("a.example"), l.peer("a.example"))
}
