package integration

import (
	"encoding/json"
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

	"github.com/stretchr/testify/require"
)

// A guard stands before the shared registry. It wants tokens, and sends who asks
// for a part of a blob to a place in its storage; both soon expire. Of a token it
// does not say that this is why it refuses it.
type guard struct {
	address string
	forward http.Handler
	lasts   time.Duration

	mu     sync.Mutex
	tokens map[string]time.Time // until when they are good
	places map[string]place

	refused, gone atomic.Int64 // requests with an expired token, or place
}

type place struct {
	blob  string // path of the registry
	until time.Time
}

func newGuard(t *testing.T, lasts time.Duration) *guard {
	t.Helper()
	g := &guard{
		forward: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry(t)}),
		lasts:   lasts, tokens: map[string]time.Time{}, places: map[string]place{},
	}
	srv := httptest.NewServer(g)
	t.Cleanup(srv.Close)
	g.address = srv.Listener.Addr().String()
	return g
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/token":
		g.issue(w)
	case strings.HasPrefix(r.URL.Path, "/storage/"):
		g.serve(w, r)
	case !g.permits(r):
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="registry",scope="repository:any:pull"`, g.address))
		http.Error(w, "no token", http.StatusUnauthorized)
	case r.Header.Get("Range") != "":
		g.send(w, r)
	default:
		r.Header.Del("Authorization")
		g.forward.ServeHTTP(w, r)
	}
}

// issue says that a token is good for longer than it is.
func (g *guard) issue(w http.ResponseWriter) {
	g.mu.Lock()
	defer g.mu.Unlock()
	token := fmt.Sprint("token-", len(g.tokens))
	g.tokens[token] = time.Now().Add(g.lasts)
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": 3600})
}

func (g *guard) permits(r *http.Request) bool {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Now().Before(g.tokens[token]) {
		return true
	}
	g.refused.Add(1)
	return false
}

func (g *guard) send(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	name := fmt.Sprint("/storage/", len(g.places))
	g.places[name] = place{r.URL.Path, time.Now().Add(g.lasts)}
	g.mu.Unlock()
	http.Redirect(w, r, "http://"+g.address+name, http.StatusTemporaryRedirect)
}

func (g *guard) serve(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	p := g.places[r.URL.Path]
	g.mu.Unlock()
	if time.Now().After(p.until) {
		g.gone.Add(1)
		http.Error(w, "expired", http.StatusForbidden)
		return
	}
	r.URL.Path = p.blob
	g.forward.ServeHTTP(w, r)
}

// A step outlives tokens and redirects, and reads on.
func TestLazyExpiry(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	want := sums(t, registry(t)+"/"+name)
	g := newGuard(t, 2*time.Second)
	d := startLazy(t, onDemand)
	const command = "head -c 100 /one >/dev/null; sleep 3; cat /two >/dev/null; sleep 3; " + sumAll
	p := d.build(t, upon(t, g.address+"/"+name, command))
	require.Equal(t, want, sum(t, p), p.text())
	require.NotZero(t, g.refused.Load(), "no token has expired")
	require.NotZero(t, g.gone.Load(), "no redirect has expired")
}
