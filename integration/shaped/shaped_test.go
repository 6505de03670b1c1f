package shaped

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var link = Link{Delay: 20 * time.Millisecond, BytesPerSecond: 50e6}

// upstream is a registry that answers at once, with as many bytes as the path
// says.
type upstream struct{}

func (upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	n := map[string]int{"/none": 0, "/small": 50_000, "/large": 100e6}[r.URL.Path]
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{}, Request: r,
		Body: io.NopCloser(io.LimitReader(zeros{}, int64(n))),
	}, nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// get asks for paths side by side, each over a connection of its own that was
// set up at a time, and returns how long that took.
func get(t *testing.T, p *Proxy, connectedAt time.Time, paths ...string) time.Duration {
	start := time.Now()
	ctx := context.WithValue(t.Context(), connected{}, connectedAt)
	var wg sync.WaitGroup
	for _, path := range paths {
		wg.Go(func() {
			r := httptest.NewRequestWithContext(ctx, http.MethodGet, "http://registry"+path, nil)
			p.ServeHTTP(discard{http.Header{}}, r)
		})
	}
	wg.Wait()
	return time.Since(start)
}

type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

// What takes how long, to the nanosecond: time is the bubble's.
func TestLink(t *testing.T) {
	for name, c := range map[string]struct {
		connected time.Duration // from the first request on
		paths     []string
		want      time.Duration
	}{
		"a round trip":                    {-time.Second, []string{"/none"}, 20 * time.Millisecond},
		"a connection":                    {20 * time.Millisecond, []string{"/none"}, 40 * time.Millisecond},
		"one that is almost there":        {5 * time.Millisecond, []string{"/none"}, 25 * time.Millisecond},
		"a small body":                    {0, []string{"/small"}, 21 * time.Millisecond},
		"a large body":                    {0, []string{"/large"}, 2020 * time.Millisecond},
		"round trips side by side":        {0, []string{"/none", "/none", "/none"}, 20 * time.Millisecond},
		"bodies share the rate":           {0, []string{"/large", "/large"}, 4020 * time.Millisecond},
		"small ones share the rate":       {0, []string{"/small", "/small", "/small"}, 23 * time.Millisecond},
		"a large one and a few small too": {0, []string{"/large", "/small", "/small"}, 2022 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newProxy("registry", link, nil)
				p.forward.Transport = upstream{}
				require.Equal(t, c.want, get(t, p, time.Now().Add(c.connected), c.paths...))
				// An idle line has nothing saved up.
				time.Sleep(time.Second)
				require.Equal(t, 21*time.Millisecond, get(t, p, time.Now(), "/small"))
			})
		})
	}
}

// A client that takes its time with each buffer, or a timer that rings late,
// costs the line nothing as long as it keeps up.
func TestLateness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy("registry", link, nil)
		p.forward.Transport = upstream{}
		const each = 400 * time.Microsecond
		start := time.Now()
		p.ServeHTTP(slow{discard{http.Header{}}, each}, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://registry/large", nil))
		require.Equal(t, 2020*time.Millisecond+each, time.Since(start))
	})
}

type slow struct {
	discard
	each time.Duration
}

func (s slow) Write(b []byte) (int, error) {
	time.Sleep(s.each)
	return len(b), nil
}

func TestNoLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy("registry", Link{}, nil)
		p.forward.Transport = upstream{}
		require.Zero(t, get(t, p, time.Now(), "/large"))
	})
}

// A small answer does not wait for all of a large one.
func TestFairness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy("registry", link, nil)
		p.forward.Transport = upstream{}
		var wg sync.WaitGroup
		wg.Go(func() { get(t, p, time.Now(), "/large") })
		time.Sleep(time.Second)
		// A buffer of the large one goes before each of the small one's two.
		require.LessOrEqual(t, get(t, p, time.Now(), "/small"), 24*time.Millisecond)
		wg.Wait()
	})
}

// A client that goes away does not hold a request up.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProxy("registry", link, nil)
		p.forward.Transport = upstream{}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		func() {
			defer func() { _ = recover() }() // how the reverse proxy ends a broken answer
			p.ServeHTTP(discard{http.Header{}}, httptest.NewRequestWithContext(ctx, http.MethodGet, "http://registry/large", nil))
		}()
		require.Equal(t, time.Second, time.Since(start))
		require.InDelta(t, 49e6, p.Requests()[0].Bytes, 1e5)
	})
}

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// A real registry sees the proxy's address as its own, and every request is
// written down.
func TestProxy(t *testing.T) {
	const body = "0123456789"
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/moved" {
			http.Redirect(w, r, "http://"+r.Host+"/v2/app/blobs/"+someDigest, http.StatusTemporaryRedirect)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(body))
	}))
	defer registry.Close()
	p, err := New(registry.Listener.Addr().String(), Link{})
	require.NoError(t, err)
	mark := time.Now()

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.Addr()+"/v2/moved", nil)
	require.NoError(t, err)
	req.Header.Set("Range", "bytes=2-5")
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	got, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, "2345", string(got))
	_, err = http.Head("http://" + p.Addr() + "/v2/app/blobs/" + someDigest)
	require.NoError(t, err)
	require.NoError(t, p.Close())

	all := p.Requests()
	require.Len(t, all, 3)
	require.Equal(t, "/v2/moved", all[0].Path)
	require.Equal(t, http.StatusTemporaryRedirect, all[0].Status)
	blobs := Blobs(all)
	require.Len(t, blobs, 1, "neither the redirect nor the HEAD")
	require.Equal(t, someDigest, blobs[0].Blob)
	require.Equal(t, "bytes=2-5", blobs[0].Range)
	require.Equal(t, http.StatusPartialContent, blobs[0].Status)
	require.EqualValues(t, 4, Bytes(blobs))
	require.Len(t, p.Since(mark), 3)
	require.Empty(t, p.Since(time.Now()))
	p.Reset()
	require.Empty(t, p.Requests())
}
