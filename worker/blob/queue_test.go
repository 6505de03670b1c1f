package blob

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A turns is a queue whose turns are taken by goroutines of their own, in a
// bubble, so that it is known when nothing moves any more.
type turns struct {
	t     *testing.T
	ctx   context.Context
	queue queue
	mu    sync.Mutex
	order string // the names of turns, as they came to run
	wg    sync.WaitGroup
}

func (q *turns) turn(p Priority) *turn { return &turn{queue: &q.queue, priority: p} }

// take lets a turn be taken, and returns when it runs or waits.
func (q *turns) take(name string, t *turn) *turn {
	q.wg.Go(func() {
		if t.take(q.ctx) == nil {
			q.mu.Lock()
			q.order += name
			q.mu.Unlock()
		}
	})
	synctest.Wait()
	return t
}

func (q *turns) release(t *turn) {
	t.release()
	synctest.Wait()
}

// calm lets the time pass in which what was wanted holds back the others.
func (q *turns) calm() {
	time.Sleep(calm + calm/4 + 1)
	synctest.Wait()
}

func (q *turns) want(order string) {
	q.t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	require.Equal(q.t, order, q.order)
}

func inBubble(t *testing.T, connections int, f func(q *turns)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		q := &turns{t: t, ctx: ctx, queue: queue{connections: connections}}
		defer q.wg.Wait()
		defer cancel()
		f(q)
		running, waiting := q.queue.counts()
		require.Zero(t, running)
		require.Zero(t, waiting)
	})
}

func TestWantedOvertakes(t *testing.T) {
	inBubble(t, 2, func(q *turns) {
		one, two := q.take("1", q.turn(Wanted)), q.take("2", q.turn(Wanted))
		b := q.take("b", q.turn(Background))
		p := q.take("p", q.turn(Prefetch))
		w := q.take("w", q.turn(Wanted))
		v := q.take("v", q.turn(Wanted))
		q.want("12")
		q.release(one)
		q.want("12w")
		q.release(two)
		q.want("12wv")
		q.release(w)
		q.want("12wvp")
		q.release(v)
		q.release(p)
		q.want("12wvp") // perhaps again in a moment
		q.calm()
		q.want("12wvpb")
		q.release(b)
	})
}

func TestHalfIsKeptForWanted(t *testing.T) {
	inBubble(t, 4, func(q *turns) {
		a, b, c := q.take("a", q.turn(Prefetch)), q.take("b", q.turn(Prefetch)), q.take("c", q.turn(Prefetch))
		q.want("ab")
		v, w := q.take("v", q.turn(Wanted)), q.take("w", q.turn(Wanted))
		q.want("abvw")
		for _, t := range []*turn{v, w, a, b} {
			q.release(t)
		}
		q.calm()
		q.want("abvwc")
		q.release(c)
	})
}

// Nobody waits for ever, however much is wanted.
func TestPatience(t *testing.T) {
	inBubble(t, 4, func(q *turns) {
		w := q.take("w", q.turn(Wanted))
		b := q.take("b", q.turn(Background))
		time.Sleep(patience - time.Nanosecond)
		synctest.Wait()
		q.want("w")
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		q.want("wb")
		q.release(b)
		q.release(w)
	})
}

// Being overdue is not being wanted.
func TestWantedBeforeOverdue(t *testing.T) {
	inBubble(t, 2, func(q *turns) {
		v, w := q.take("v", q.turn(Wanted)), q.take("w", q.turn(Wanted))
		b := q.take("b", q.turn(Background))
		time.Sleep(patience + 1)
		x := q.take("x", q.turn(Wanted))
		q.release(v)
		q.want("vwx")
		q.release(w)
		q.want("vwxb")
		q.release(x)
		q.release(b)
	})
}

func TestRaise(t *testing.T) {
	inBubble(t, 2, func(q *turns) {
		v, w := q.take("v", q.turn(Wanted)), q.take("w", q.turn(Wanted))
		p := q.take("p", q.turn(Prefetch))
		b := q.take("b", q.turn(Background))
		b.raise(Wanted)
		b.raise(Prefetch) // never down
		q.release(w)
		q.want("vwb")
		running, waiting := q.queue.counts()
		require.Equal(q.t, [priorities]int{2, 0, 0}, running)
		require.Equal(q.t, [priorities]int{0, 1, 0}, waiting)
		q.release(v)
		q.want("vwbp")
		q.release(b)
		q.release(p)
		q.calm()
		r := q.take("r", q.turn(Background))
		r.lower(Prefetch) // never up
		require.Equal(q.t, Background, r.level())
		r.raise(Wanted) // while it runs
		r.lower(Prefetch)
		running, _ = q.queue.counts()
		require.Equal(q.t, [priorities]int{0, 1, 0}, running)
		q.release(r)
		r.release() // twice is once
	})
}

func TestTakeIsCancelled(t *testing.T) {
	inBubble(t, 2, func(q *turns) {
		v, w := q.take("v", q.turn(Wanted)), q.take("w", q.turn(Wanted))
		ctx, cancel := context.WithCancel(q.t.Context())
		x := q.turn(Wanted)
		q.wg.Go(func() { require.ErrorIs(q.t, x.take(ctx), context.Canceled) })
		synctest.Wait()
		p := q.take("p", q.turn(Prefetch))
		cancel()
		synctest.Wait()
		q.release(v)
		q.release(w)
		q.calm()
		q.want("vwp")
		q.release(p)
	})
}

// What runs pauses while what is wanted does: it gets a little from time to
// time, and everything when nothing is wanted any more.
func TestYield(t *testing.T) {
	inBubble(t, 4, func(q *turns) {
		b := q.take("b", q.turn(Background))
		n, waited := b.yield(q.t.Context(), 1<<20)
		require.Equal(q.t, 1<<20, n)
		require.False(q.t, waited)

		w := q.take("w", q.turn(Wanted))
		start := time.Now()
		n, waited = b.yield(q.t.Context(), 1<<20)
		require.Equal(q.t, trickleBytes, n)
		require.True(q.t, waited)
		require.Equal(q.t, trickleTime, time.Since(start))
		n, waited = w.yield(q.t.Context(), 1<<20)
		require.Equal(q.t, 1<<20, n)
		require.False(q.t, waited)

		q.release(w)
		n, _ = b.yield(q.t.Context(), 1<<20)
		require.Equal(q.t, trickleBytes, n)
		n, waited = b.yield(q.t.Context(), 1<<20)
		require.Equal(q.t, 1<<20, n)
		require.False(q.t, waited)

		w = q.take("w", w)
		b.raise(Wanted)
		n, _ = b.yield(q.t.Context(), 1<<20)
		require.Equal(q.t, 1<<20, n)
		q.release(b)
		q.release(w)
	})
}

// Prefetch pauses from the first byte of what is wanted to its last.
func TestPrefetchYields(t *testing.T) {
	inBubble(t, 4, func(q *turns) {
		p, w := q.take("p", q.turn(Prefetch)), q.take("w", q.turn(Wanted))
		pauses := func() bool {
			_, waited := p.yield(q.t.Context(), 1<<20)
			return waited
		}
		require.False(q.t, pauses(), "in the round trip")
		w.arrives()
		w.arrives() // twice is once
		require.True(q.t, pauses())
		q.release(w)
		require.False(q.t, pauses())

		other := q.take("o", q.turn(Prefetch))
		other.arrives()
		require.False(q.t, pauses())
		other.raise(Wanted)
		require.True(q.t, pauses())
		q.release(other)
		require.False(q.t, pauses())
		q.release(p)
	})
}

// With one connection alone, what is wanted would have to wait for the others.
func TestTwoConnectionsAtLeast(t *testing.T) {
	l := NewLine(Options{Connections: 1})
	for _, p := range []Priority{Prefetch, Wanted} {
		turn := &turn{queue: &l.queue, priority: p}
		require.NoError(t, turn.take(t.Context()))
		defer turn.release()
	}
}

// A stream that is hurried gives way no more, and holds back the others.
func TestHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &shapedLine{roundTrip: 20 * time.Millisecond, rate: 50e6}
		h := &inProcess{serve: line.serve}
		b := NewLine(Options{}).Open(someDigest, source(h.host()))
		wanted := &turn{queue: &b.line.queue, priority: Wanted, host: "registry.example"}
		require.NoError(t, wanted.take(t.Context()))
		defer wanted.release()

		rc, err := b.With(Background).Range(t.Context(), 0, 5_000_000)
		require.NoError(t, err)
		defer rc.Close()
		time.AfterFunc(patience/2, rc.(interface{ Hurry() }).Hurry)
		start := time.Now()
		_, err = io.Copy(io.Discard, rc)
		require.NoError(t, err)
		require.Equal(t, patience/2+120*time.Millisecond, time.Since(start).Round(time.Millisecond))
		require.NoError(t, rc.Close())
		rc.(*Stream).Hurry()
	})
}

// One budget for all blobs: the server never sees more requests than that, nor
// is asked for more bytes.
func TestBudget(t *testing.T) {
	const connections, inFlight = 4, 400_000
	blob := contents(1 << 20)
	var mu sync.Mutex
	var running, peak, asked, peakAsked int64
	full := make(chan struct{}) // closed when the budget is used up for the first time
	r := serve(t, blob, func(w http.ResponseWriter, req *http.Request) bool {
		var from, to int64
		scan(t, req.Header.Get("Range"), &from, &to)
		count := func(sign int64) {
			mu.Lock()
			defer mu.Unlock()
			running, asked = running+sign, asked+sign*(to-from+1)
			if running == connections && peak < running {
				close(full)
			}
			peak, peakAsked = max(peak, running), max(peakAsked, asked)
		}
		count(1)
		<-full
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(blob)))
		w.Header().Set("Content-Length", fmt.Sprint(to-from+1))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(blob[from:to])
		count(-1) // with the last byte the client may ask again
		w.Write(blob[to : to+1])
		return true
	})
	l := NewLine(Options{Connections: connections, BytesInFlight: inFlight})
	var wg sync.WaitGroup
	for i := range 40 {
		b := l.Open(r.digest(), source(r.host()))
		wg.Go(func() {
			got, err := read(t.Context(), b.With(Priority(i%3)), 0, 300_000)
			if err != nil || string(got) != string(blob[:300_000]) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, connections, peak)
	require.LessOrEqual(t, peakAsked, int64(inFlight))
	require.Zero(t, l.Stats().Running)
	require.Zero(t, l.Stats().Waiting)
}

// What somebody waits for comes at nearly the full rate while what nobody waits
// for has had the line to itself before, and that comes whole afterwards.
func TestWantedBeforeBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 64 << 20
		line := &shapedLine{roundTrip: 20 * time.Millisecond, rate: 50e6}
		h := &inProcess{serve: line.serve}
		l := NewLine(Options{BytesInFlight: 1 << 40})
		b := l.Open(someDigest, source(h.host()))

		alone := timeOf(t, b.With(Wanted), 0, 5_000_000)
		require.Equal(t, 120*time.Millisecond, alone.Round(time.Millisecond))

		var wg sync.WaitGroup
		for _, p := range []Priority{Prefetch, Background} {
			wg.Go(func() { timeOf(t, b.With(p), 0, size) })
		}
		time.Sleep(500 * time.Millisecond)
		busy := timeOf(t, b.With(Wanted), 0, 5_000_000)
		require.Less(t, busy, alone+10*time.Millisecond)
		wg.Wait()
	})
}

func timeOf(t *testing.T, v View, off, n int64) time.Duration {
	start := time.Now()
	rc, err := v.Range(t.Context(), off, n)
	require.NoError(t, err)
	defer rc.Close()
	got, err := io.Copy(io.Discard, rc)
	require.NoError(t, err)
	require.Equal(t, n, got)
	return time.Since(start)
}

// Of readers of the same registry, those of one blob do not keep those of another
// waiting.
func TestBlobsTakeTurns(t *testing.T) {
	q := &queue{connections: 2}
	many, few := &Blob{}, &Blob{}
	enter := func(b *Blob) *turn {
		turn := &turn{queue: q, blob: b, priority: Wanted}
		q.enter(turn)
		return turn
	}
	var first []*turn
	for range 5 {
		first = append(first, enter(many))
	}
	other := enter(few)
	require.True(t, first[0].running && first[1].running)
	require.False(t, other.running)
	first[0].release()
	require.True(t, other.running)
	for _, turn := range append(first, other) {
		turn.release()
	}
	require.True(t, q.load("").running == [priorities]int{})
	require.Empty(t, q.blobs)
}

// What is wanted of a slow registry does not hold up what others bring.
func TestOtherRegistriesDoNotGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &shapedLine{roundTrip: 50 * time.Millisecond, rate: 20e3}
		fast := &shapedLine{roundTrip: 20 * time.Millisecond, rate: 50e6}
		slowHost, fastHost := (&inProcess{serve: slow.serve}).host(), (&inProcess{serve: fast.serve}).host()
		fastHost.Host = "fast.example"
		l := NewLine(Options{})
		here := l.Open(someDigest, source(fastHost))
		alone := timeOf(t, here.With(Wanted), 0, 5_000_000)
		ctx, cancel := context.WithCancel(t.Context())
		var other sync.WaitGroup
		other.Go(func() { read(ctx, l.Open(someDigest, source(slowHost)).With(Wanted), 0, 4_000_000) })
		defer time.Sleep(time.Minute) // in which the registry sees that nobody reads
		defer other.Wait()
		defer cancel()
		time.Sleep(time.Second)
		require.Equal(t, 1, l.Stats().Running[Wanted])
		for _, p := range []Priority{Prefetch, Background} {
			require.Less(t, timeOf(t, here.With(p), 0, 5_000_000), alone+2*calm, p)
		}
	})
}

// The loads of registries that are not read from any more are not kept.
func TestIdleLoadsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &queue{connections: 2}
		for i := range 10 {
			turn := &turn{queue: q, host: fmt.Sprint(i)}
			require.NoError(t, turn.take(t.Context()))
			turn.release()
			time.Sleep(calm)
		}
		require.Len(t, q.hosts, 1)
	})
}
