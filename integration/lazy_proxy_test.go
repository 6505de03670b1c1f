package integration

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
)

// A gate stands before the shared registry. It lets in who has a user's password
// or, unless it is basic, one of the tokens that it gives for that and soon
// forgets. To the requests for parts of blobs it does not say that this is why it
// refuses them, does what the test wants, and counts them. Whole blobs, such as an
// image's configuration, are BuildKit's own affair.
type gate struct {
	address  string
	login    shaped.Login                 // what lasts is a redirect to storage, too
	open     bool                         // to everybody
	redirect bool                         // who asks for parts of blobs
	fault    atomic.Pointer[http.Handler] // nil lets everything through
	forward  http.Handler
	server   *httptest.Server

	mu     sync.Mutex
	places map[string]place
	blobs  map[digest.Digest]*fetches

	gone atomic.Int64 // requests with an expired place
}

// A place in the storage has a blob for a while.
type place struct {
	path  string // of the registry
	until time.Time
}

// fetches are what was asked for of a blob.
type fetches struct{ parts, whole, bytes atomic.Int64 }

// newGate starts a gate that wants tokens. The clients of all daemons know the
// password.
func newGate(t *testing.T) *gate {
	t.Helper()
	g := &gate{
		login:   shaped.Login{Users: map[string]string{"builder": "secret"}, Lasts: 2 * time.Second},
		forward: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry(t)}),
		places:  map[string]place{}, blobs: map[digest.Digest]*fetches{},
	}
	g.server = httptest.NewServer(g)
	t.Cleanup(g.server.Close)
	g.address = g.server.Listener.Addr().String()
	logIn(t, shared.logins(), g.address, "builder", "secret")
	return g
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, "/storage/"):
		if !g.finds(r) {
			http.Error(w, "expired", http.StatusForbidden)
			return
		}
	case !g.open && !g.login.Admits(w, r):
		return
	case g.redirect && shaped.IsPart(r):
		g.send(w, r)
		return
	}
	w = &countingWriter{w, g.count(r)}
	if fault := g.fault.Load(); fault != nil && shaped.IsPart(r) {
		(*fault).ServeHTTP(w, r)
		return
	}
	g.forward.ServeHTTP(w, r)
}

func (g *gate) send(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	name := fmt.Sprint("/storage/", len(g.places))
	g.places[name] = place{r.URL.Path, time.Now().Add(g.login.Lasts)}
	g.mu.Unlock()
	http.Redirect(w, r, "http://"+g.address+name, http.StatusTemporaryRedirect)
}

// finds puts the path of a place into a request for it.
func (g *gate) finds(r *http.Request) bool {
	g.mu.Lock()
	p := g.places[r.URL.Path]
	g.mu.Unlock()
	if time.Now().After(p.until) {
		g.gone.Add(1)
		return false
	}
	r.URL.Path = p.path
	return true
}

// count notes a request, and returns where to count what is sent for it.
func (g *gate) count(r *http.Request) *atomic.Int64 {
	_, name, ok := strings.Cut(r.URL.Path, "/blobs/")
	if !ok || r.Method != http.MethodGet {
		return new(atomic.Int64)
	}
	f := g.fetched(digest.Digest(name))
	if shaped.IsPart(r) {
		f.parts.Add(1)
	} else {
		f.whole.Add(1)
	}
	return &f.bytes
}

func (g *gate) fetched(blob digest.Digest) *fetches {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.blobs[blob]
	if f == nil {
		f = &fetches{}
		g.blobs[blob] = f
	}
	return f
}

// bytes are those that were sent of all blobs.
func (g *gate) bytes() (sum int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.blobs {
		sum += f.bytes.Load()
	}
	return sum
}

// requireLazy requires the layers of an image to have been read in parts, and
// not otherwise.
func (g *gate) requireLazy(t *testing.T, name string) {
	t.Helper()
	parts := int64(0)
	for i, layer := range onlyImage(t, registry(t)+"/"+name).Manifest.Layers {
		f := g.fetched(layer.Digest)
		require.Zero(t, f.whole.Load(), "layer %d was pulled whole", i)
		parts += f.parts.Load()
	}
	require.NotZero(t, parts, "nobody has asked for any layer")
}

// do lets a function answer those requests from now on; nil lets them
// through.
func (g *gate) do(f func(http.ResponseWriter, *http.Request)) {
	if f == nil {
		g.fault.Store(nil)
		return
	}
	var h http.Handler = http.HandlerFunc(f)
	g.fault.Store(&h)
}

// everyOther lets a function answer every other of those for the same blob.
func (g *gate) everyOther(f func(http.ResponseWriter, *http.Request)) {
	var mu sync.Mutex
	seen := map[string]int{}
	g.do(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[r.URL.Path]++
		n := seen[r.URL.Path]
		mu.Unlock()
		if n%2 == 1 {
			f(w, r)
			return
		}
		g.forward.ServeHTTP(w, r)
	})
}

// reset cuts the connection after some of the answer.
func (g *gate) reset(w http.ResponseWriter, r *http.Request) {
	g.forward.ServeHTTP(&shaped.CutWriter{ResponseWriter: w, Left: 1000, Cut: func() { panic(http.ErrAbortHandler) }}, r)
}

// stall keeps the connection open after some of the answer.
func (g *gate) stall(w http.ResponseWriter, r *http.Request) {
	g.forward.ServeHTTP(&shaped.CutWriter{ResponseWriter: w, Left: 1000, Cut: func() {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}}, r)
}

// corrupt answers with wrong bytes.
func (g *gate) corrupt(w http.ResponseWriter, r *http.Request) {
	g.forward.ServeHTTP(&shaped.WrongWriter{ResponseWriter: w}, r)
}

// wrongRange answers with the beginning of the blob, whatever was asked for.
func (g *gate) wrongRange(w http.ResponseWriter, r *http.Request) {
	r.Header.Set("Range", "bytes=0-99")
	g.forward.ServeHTTP(w, r)
}

// isProbe says whether a request asks for one byte, to see whether a build may read.
func isProbe(r *http.Request) bool { return r.Header.Get("Range") == "bytes=0-0" }

// holdContents holds the requests for contents of layers until answer is closed, and
// sends to asked for each. It lets those through by which a build shows its rights.
func (g *gate) holdContents() (asked <-chan struct{}, answer chan struct{}) {
	requests, answer := make(chan struct{}, 1000), make(chan struct{})
	g.do(func(w http.ResponseWriter, r *http.Request) {
		if !isProbe(r) && !strings.HasPrefix(r.Header.Get("Range"), "bytes=-") {
			requests <- struct{}{}
			select {
			case <-answer:
			case <-r.Context().Done():
				return
			}
		}
		g.forward.ServeHTTP(w, r)
	})
	return requests, answer
}

func awaitRequest(ctx context.Context, t *testing.T, asked <-chan struct{}) {
	t.Helper()
	select {
	case <-asked:
	case <-ctx.Done():
		require.Fail(t, "nobody asks for the contents of a layer")
	}
}

func (g *gate) status(code int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "a fault", code) }
}
