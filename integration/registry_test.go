package integration

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// shared is what all tests use: one registry, with the base images in it. They
// push to repositories of their own.
var shared = fixtures{bases: map[string]bool{}}

type fixtures struct {
	once     sync.Once
	err      error
	dir      string
	registry *process
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
	cmd := exec.Command(tool("docker-registry"), "serve", filepath.Join("..", "hack", "registry.yml"))
	cmd.Env = append(os.Environ(),
		// It chooses a port, and logs it.
		"REGISTRY_LOG_LEVEL=info",
		"REGISTRY_HTTP_ADDR=127.0.0.1:0",
		"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY="+filepath.Join(f.dir, "registry"))
	if f.registry, err = startProcess(f.dir, "registry", cmd); err != nil {
		return err
	}
	return f.registry.untilReady(func() bool {
		log, err := os.ReadFile(f.registry.log)
		if found := listening.FindSubmatch(log); err == nil && found != nil {
			f.address = string(found[1])
		}
		return f.address != ""
	})
}

// listening is logged when connections are accepted.
var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// logins is where the clients of all daemons find their passwords.
func (f *fixtures) logins() string { return filepath.Join(f.dir, "docker") }

func (f *fixtures) end() error {
	if f.registry == nil {
		return nil
	}
	return errors.Join(f.registry.stop(), os.RemoveAll(f.dir))
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
