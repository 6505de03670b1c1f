package blob

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRange(t *testing.T) {
	blob := contents(1 << 20)
	r := serve(t, blob)
	b := r.open(Options{})
	for _, c := range []struct{ off, n int64 }{{0, 1}, {0, 1 << 20}, {1<<20 - 1, 1}, {12345, 67890}, {5, 0}, {1 << 20, 0}} {
		wantRange(t, b, blob, c.off, c.n)
	}
	require.Equal(t, []string{"bytes=0-0", "bytes=0-1048575", "bytes=1048575-1048575", "bytes=12345-80234"}, r.ranges())
	for _, req := range r.seen() {
		require.Equal(t, "/v2/library/image/blobs/"+r.digest().String(), req.URL.RequestURI())
		require.Equal(t, "identity", req.Header.Get("Accept-Encoding"))
	}
	stats := b.line.Stats()
	require.EqualValues(t, 4, stats.Requests)
	require.EqualValues(t, 1+1<<20+1+67890, stats.Bytes)
	require.Zero(t, stats.Retries)
	require.Zero(t, stats.Running)
}

func TestRangeArguments(t *testing.T) {
	v := serve(t, contents(10)).open(Options{}).With(Wanted)
	for _, c := range []struct{ off, n int64 }{{-1, 1}, {0, -1}, {1<<63 - 1, 1}, {1, 1<<63 - 1}} {
		_, err := v.Range(t.Context(), c.off, c.n)
		require.ErrorIs(t, err, errRange)
	}
}

// A range ends where the blob does.
func TestRangeBeyondTheEnd(t *testing.T) {
	blob := contents(1000)
	for name, troubles := range map[string][]trouble{"ranged": nil, "unranged": {unranged(false)}} {
		for _, inFlight := range []int64{0, 8 * 100} { // a request asks for an eighth
			b := serve(t, blob, troubles...).open(Options{BytesInFlight: inFlight, TempDir: t.TempDir()})
			for _, off := range []int64{0, 1, 950, 999} {
				got, err := read(t.Context(), b.With(Wanted), off, 2000)
				require.NoError(t, err, name)
				require.Equal(t, blob[off:], got, name)
			}
		}
	}
}

// A connection is used again, not made anew for each range.
func TestConnectionsAreKept(t *testing.T) {
	blob := contents(1 << 20)
	r := serve(t, blob)
	b := r.open(Options{})
	for off := range int64(10) {
		wantRange(t, b, blob, off*1000, 100_000)
	}
	var clients []string
	for _, req := range r.seen() {
		clients = append(clients, req.RemoteAddr)
	}
	require.Len(t, slices.Compact(clients), 1)
}

// What goes wrong for a while is not seen by the reader, and what came already
// is not asked for again.
func TestTemporaryFaults(t *testing.T) {
	const size = 300_000
	blob := contents(size)
	for name, c := range map[string]struct {
		trouble trouble
		retries int
		resumes bool
	}{
		"server errors":           {first(3, status(503)), 3, false},
		"bad gateway":             {first(1, status(502)), 1, false},
		"too many requests":       {first(2, status(429, "Retry-After", "0")), 2, false},
		"request timeout":         {first(1, status(408)), 1, false},
		"refused for a while":     {first(1, status(403, "Retry-After", "1")), 1, false},
		"connection closed":       {first(2, cut(blob, 0, reset)), 2, false},
		"reset in mid-body":       {first(2, cut(blob, 100_000, reset)), 2, true},
		"truncated body":          {first(2, cut(blob, 100_000, truncate)), 2, true},
		"stalled header":          {first(1, func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }), 1, false},
		"stalled body":            {first(2, cut(blob, 100_000, silence)), 2, true},
		"range of something else": {first(1, partial("bytes 1-300000/300001", size)), 1, false},
		"range too long":          {first(1, partial("bytes 0-300000/300001", size+1)), 1, false},
		"range of other length":   {first(1, partial("bytes 0-299999/300000", size-1)), 1, false},
		"no content range":        {first(1, partial("", size)), 1, false},
		"nonsense content range":  {first(1, partial("bytes 9-0/300000", size)), 1, false},
		"range beyond the blob":   {first(1, partial("bytes 0-299999/1000", size)), 1, false},
		"end without a length": {first(1, func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Range", "bytes 0-299999/300000")
			w.WriteHeader(206)
			http.NewResponseController(w).Flush()
			w.Write(blob[:10])
			return true
		}), 1, true},
		"parts": {first(1, status(206, "Content-Type", "multipart/byteranges; boundary=x")), 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			check := func(t *testing.T, r *registry, b *Blob) {
				wantRange(t, b, blob, 0, size)
				require.EqualValues(t, c.retries, b.line.Stats().Retries)
				require.Zero(t, b.line.Stats().Failures)
				ranges := r.ranges()
				require.Len(t, ranges, c.retries+1)
				if c.resumes {
					require.NotContains(t, ranges[1:], ranges[0])
				}
			}
			if !strings.HasPrefix(name, "stalled") {
				r := serve(t, blob, c.trouble)
				check(t, r, r.open(Options{}))
				return
			}
			synctest.Test(t, func(t *testing.T) {
				r := &registry{blob: blob, troubles: []trouble{c.trouble}}
				check(t, r, r.openInProcess(Options{}))
			})
		})
	}
}

// A server may send less than was asked for, if it says so.
func TestShorterRange(t *testing.T) {
	blob := contents(1000)
	r := serve(t, blob, first(1, func(w http.ResponseWriter, r *http.Request) bool {
		r.Header.Set("Range", "bytes=0-99")
		return false
	}))
	b := r.open(Options{})
	wantRange(t, b, blob, 0, 1000)
	require.Equal(t, []string{"bytes=0-999", "bytes=100-999"}, r.ranges())
	require.Zero(t, b.line.Stats().Retries)
}

// A range that the budget does not hold takes several requests.
func TestPieces(t *testing.T) {
	blob := contents(1000)
	r := serve(t, blob)
	wantRange(t, r.open(Options{Connections: 4, BytesInFlight: 1600}), blob, 0, 1000)
	require.Equal(t, []string{"bytes=0-399", "bytes=400-799", "bytes=800-999"}, r.ranges())
}

func TestCancel(t *testing.T) {
	blob := contents(100_000)
	for name, f := range map[string]trouble{
		"stalled header":   func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true },
		"stalled body":     cut(blob, 50_000, silence),
		"between attempts": status(503, "Retry-After", "1000"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &registry{blob: blob, troubles: []trouble{f}}
				b := r.openInProcess(Options{})
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				_, err := read(ctx, b.With(Wanted), 0, 100_000)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				var e *Error
				require.ErrorAs(t, err, &e)
				require.Equal(t, "registry.example", e.Host)
				require.True(t, e.Temporary())
				require.Len(t, r.seen(), 1)
				require.Zero(t, b.line.Stats().Failures)
				require.Zero(t, b.line.Stats().Running)
				if name == "between attempts" {
					require.ErrorContains(t, err, "503 Service Unavailable")
				}
			})
		})
	}
}

func TestCancelledBefore(t *testing.T) {
	r := serve(t, contents(10))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := read(ctx, r.open(Options{}).With(Wanted), 0, 10)
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, r.seen())
}

func TestCloseEarly(t *testing.T) {
	r := serve(t, contents(10_000_000))
	b := r.open(Options{})
	rc, err := b.With(Wanted).Range(t.Context(), 0, 10_000_000)
	require.NoError(t, err)
	_, err = rc.Read(make([]byte, 10))
	require.NoError(t, err)
	require.Equal(t, [priorities]int{1, 0, 0}, b.line.Stats().Running)
	require.NoError(t, rc.Close())
	require.Zero(t, b.line.Stats().Running)
	_, err = rc.Read(make([]byte, 10))
	require.ErrorIs(t, err, io.ErrClosedPipe)
}

// Whoever has read the last byte holds no connection, closed or not.
func TestEndGivesTheTurnBack(t *testing.T) {
	r := serve(t, contents(1000))
	b := r.open(Options{})
	rc, err := b.With(Wanted).Range(t.Context(), 0, 1000)
	require.NoError(t, err)
	_, err = io.ReadFull(rc, make([]byte, 1000))
	require.NoError(t, err)
	require.Zero(t, b.line.Stats().Running)
	n, err := rc.Read(make([]byte, 1))
	require.Zero(t, n)
	require.Equal(t, io.EOF, err)
}

// Reads of few bytes and of none get the same as large ones.
func TestSmallReads(t *testing.T) {
	blob := contents(1000)
	r := serve(t, blob)
	rc, err := r.open(Options{}).With(Wanted).Range(t.Context(), 0, 1000)
	require.NoError(t, err)
	var got bytes.Buffer
	for buf := make([]byte, 7); ; {
		n, err := rc.Read(buf[:0])
		require.Zero(t, n)
		require.NoError(t, err)
		if n, err = rc.Read(buf); err == io.EOF {
			break
		}
		require.NoError(t, err)
		got.Write(buf[:n])
	}
	require.Equal(t, blob, got.Bytes())
}
