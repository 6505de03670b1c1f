package blob

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// gaps are the times between requests.
func (p *inProcess) gaps() []time.Duration {
	var all []time.Duration
	for i := range p.times[1:] {
		all = append(all, p.times[i+1].Sub(p.times[i]))
	}
	return all
}

// Waits double up to a limit, and are not the same for everybody.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := contents(100)
		unavailable := first(9, status(503))
		h := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) {
			if !unavailable(w, r) {
				sendBlob(w, r, blob)
			}
		}}
		wantRange(t, NewLine(Options{}).Open(someDigest, source(h.host())), blob, 0, 100)
		gaps, most := h.gaps(), firstWait
		require.Len(t, gaps, 9)
		require.NotEqual(t, 2*gaps[0], gaps[1])
		for _, gap := range gaps {
			require.LessOrEqual(t, gap, most)
			require.GreaterOrEqual(t, gap, most/2)
			most = min(2*most, maxWait)
		}
		require.Equal(t, maxWait, most)
	})
}

func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := contents(100)
		seconds := first(1, status(429, "Retry-After", "7"))
		date := first(1, status(503, "Retry-After", time.Now().Add(20*time.Second).UTC().Format(http.TimeFormat)))
		nonsense := first(1, status(503, "Retry-After", "soon"))
		refused := first(1, status(403, "Retry-After", "3"))
		h := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) {
			if !seconds(w, r) && !date(w, r) && !nonsense(w, r) && !refused(w, r) {
				sendBlob(w, r, blob)
			}
		}}
		wantRange(t, NewLine(Options{}).Open(someDigest, source(h.host())), blob, 0, 100)
		gaps := h.gaps()
		require.Equal(t, 7*time.Second, gaps[0])
		require.InDelta(t, 13, gaps[1].Seconds(), 1)
		require.LessOrEqual(t, gaps[2], 4*firstWait)
		require.Equal(t, 3*time.Second, gaps[3])
	})
}

// A host that has refused for good does not make those wait less that will be
// asked again.
func TestRetryAfterBesideARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := contents(100)
		overloaded := first(1, status(503, "Retry-After", "7"))
		lacksIt := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) { status(404)(w, r) }}
		h := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) {
			if !overloaded(w, r) {
				sendBlob(w, r, blob)
			}
		}}
		mirror := lacksIt.host()
		mirror.Host = "mirror.example"
		wantRange(t, NewLine(Options{}).Open(someDigest, source(mirror, h.host())), blob, 0, 100)
		require.Equal(t, []time.Duration{7 * time.Second}, h.gaps())
	})
}

// Whoever goes away learns what it was that took so long.
func TestCancelNamesTheCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unavailable := first(1, status(503))
		h := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) {
			if !unavailable(w, r) {
				silence(w, r)
			}
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := read(ctx, NewLine(Options{}).Open(someDigest, source(h.host())).With(Wanted), 0, 100)
		require.EqualError(t, err, "layer "+someDigest.String()+" from registry.example: context deadline exceeded (last: 503 Service Unavailable)")
	})
}

// What comes just before the deadline counts, and nothing is tried after it.
func TestDeadlineToTheSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := contents(100)
		start := time.Now()
		back := start.Add(2*time.Minute - 1)
		h := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) {
			if time.Now().Before(back) {
				status(503)(w, r)
			} else {
				sendBlob(w, r, blob)
			}
		}}
		b := NewLine(Options{}).Open(someDigest, source(h.host()))
		wantRange(t, b, blob, 0, 100)
		require.Equal(t, 2*time.Minute, time.Since(start))

		synctest.Wait()
		start = time.Now()
		back = start.Add(time.Hour)
		e := wantError(t, b)
		require.Equal(t, 2*time.Minute, time.Since(start))
		require.EqualError(t, e, "layer "+someDigest.String()+" from registry.example: gave up after 2m0s: 503 Service Unavailable")
	})
}

// Some bytes set a new deadline.
func TestDeadlineIsForSomeBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := contents(100 * trickle)
		h := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(9 * time.Second)
			cut(blob, trickle, truncate)(w, r)
		}}
		start := time.Now()
		wantRange(t, NewLine(Options{}).Open(someDigest, source(h.host())), blob, 0, int64(len(blob)))
		require.Equal(t, 100, h.requests())
		require.Greater(t, time.Since(start), 14*time.Minute)
	})
}

// drip answers with one byte every few seconds.
func drip(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Range", "bytes "+strings.TrimPrefix(r.Header.Get("Range"), "bytes=")+"/1000000")
	w.WriteHeader(http.StatusPartialContent)
	for {
		if _, err := w.Write([]byte{1}); err != nil {
			return
		}
		select {
		case <-time.After(3 * time.Second):
		case <-r.Context().Done():
			return
		}
	}
}

// A registry that lets bytes trickle is given up, and the error says so.
func TestTrickle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &inProcess{serve: drip}
		start := time.Now()
		_, err := read(t.Context(), NewLine(Options{}).Open(someDigest, source(h.host())).With(Wanted), 0, 1000000)
		require.ErrorContains(t, err, "from registry.example: gave up after 2m0s: ")
		require.ErrorContains(t, err, "bytes came in ")
		require.Less(t, time.Since(start), 4*time.Minute)
	})
}

// Whatever many readers wait for at one registry, others have connections to
// theirs.
func TestTrickleHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad, blob := &inProcess{serve: drip}, contents(100_000)
		good := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) { sendBlob(w, r, blob) }}
		elsewhere := good.host()
		elsewhere.Host = "elsewhere.example"
		l := NewLine(Options{})
		slow := l.Open(someDigest, source(bad.host()))
		for range 20 {
			go func() { _, _ = read(t.Context(), slow.With(Wanted), 0, 1000000) }()
		}
		synctest.Wait()
		start := time.Now()
		wantRange(t, l.Open(someDigest, source(elsewhere)), blob, 0, 100_000)
		require.Less(t, time.Since(start), time.Second)
	})
}

// A server that needs long before it says something gets it in the end, and one
// that never does is given up.
func TestPatienceWithSlowServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := contents(100)
		needs := 35 * time.Second
		h := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(needs):
				sendBlob(w, r, blob)
			case <-r.Context().Done():
			}
		}}
		b := NewLine(Options{}).Open(someDigest, source(h.host()))
		start := time.Now()
		wantRange(t, b, blob, 0, 100)
		require.Equal(t, 3, h.requests())
		require.Less(t, time.Since(start), 70*time.Second)

		synctest.Wait()
		needs = time.Hour
		require.ErrorContains(t, wantError(t, b), "no byte came for 1m20s")
	})
}

// A body may take much longer than any deadline, as long as something comes.
func TestSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := &shapedLine{roundTrip: time.Second, rate: 10e3}
		h := &inProcess{serve: line.serve}
		b := NewLine(Options{}).Open(someDigest, source(h.host()))
		require.Equal(t, 1001*time.Second, timeOf(t, b.With(Wanted), 0, 10e6).Round(time.Second))
		require.Equal(t, 1, h.requests())
	})
}

// What wears a reader out is not a fault of the server.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blob := contents(1 << 20)
		h := &inProcess{serve: func(w http.ResponseWriter, r *http.Request) { sendBlob(w, r, blob) }}
		b := NewLine(Options{}).Open(someDigest, source(h.host()))
		rc, err := b.With(Wanted).Range(t.Context(), 0, 1<<20)
		require.NoError(t, err)
		defer rc.Close()
		buf := make([]byte, 1<<20)
		for got := 0; got < len(buf); {
			n, err := rc.Read(buf[got:])
			require.NoError(t, err)
			got += n
			time.Sleep(time.Minute)
		}
		require.Equal(t, blob, buf)
		require.Equal(t, 1, h.requests())
	})
}
