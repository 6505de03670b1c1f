package integration

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// shared is what all tests use: one registry, with the base images in it. They
// push to repositories of their own.
var shared = fixtures{bases: map[string]bool{}}

type fixtures struct {
	once     sync.Once
	err      error
	dir      string
	registry *harness.Registry
	address  string

	basesMu sync.Mutex
	bases   map[string]bool // the base images that are in the registry, by name
}

// registry starts the registry at its first call and returns its address.
func registry(t *testing.T) string {
	t.Helper()
	shared.once.Do(func() { shared.err = shared.start() })
	require.NoError(t, shared.err)
	return shared.address
}

func (f *fixtures) start() (err error) {
	if f.dir, err = os.MkdirTemp("", "esgz-registry"); err != nil {
		return err
	}
	if f.registry, err = harness.StartRegistry(context.Background(), bin, f.dir); err != nil {
		return err
	}
	f.address = f.registry.Address
	return nil
}

// logins is where the clients of all daemons find their passwords.
func (f *fixtures) logins() string { return filepath.Join(f.dir, "docker") }

func (f *fixtures) end() error {
	if f.registry == nil {
		return nil
	}
	return errors.Join(f.registry.Stop(), os.RemoveAll(f.dir))
}

// repository is a name in the shared registry that no other test uses.
func repository(t *testing.T) string {
	return registry(t) + "/" + repositoryName(t)
}

func repositoryName(t *testing.T) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '/' {
			return r
		}
		return '-'
	}, strings.ToLower(t.Name()))
	return strings.Trim(name, "-")
}

// A proxy stands before the shared registry and counts what is read of blobs.
type proxy struct {
	address  string
	requests atomic.Int64
	bytes    atomic.Int64
}

func countingProxy(t *testing.T) *proxy {
	t.Helper()
	p := &proxy{}
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry(t)})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			p.requests.Add(1)
			w = &countingWriter{w, &p.bytes}
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	p.address = srv.Listener.Addr().String()
	return p
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// Unwrap lets the proxy flush.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
