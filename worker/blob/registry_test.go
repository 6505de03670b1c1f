package blob

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// contents are a blob's, the same for the same size.
func contents(n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(p)
	return p
}

// A registry serves one blob, whatever the path, and remembers the requests.
// Faults come first, in order; the first one that answers ends the request.
type registry struct {
	*httptest.Server
	blob     []byte
	troubles []trouble

	mu       sync.Mutex
	requests []*http.Request
}

// A trouble answers a request, or returns false and leaves it to others.
type trouble func(w http.ResponseWriter, r *http.Request) bool

func serve(t testing.TB, blob []byte, troubles ...trouble) *registry {
	r := &registry{blob: blob, troubles: troubles}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.remember(req)
	for _, f := range r.troubles {
		if f(w, req) {
			return
		}
	}
	sendBlob(w, req, r.blob)
}

func sendBlob(w http.ResponseWriter, r *http.Request, blob []byte) {
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
}

func (r *registry) remember(req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, req.Clone(context.Background()))
}

// ranges are those that were asked for.
func (r *registry) ranges() []string {
	var all []string
	for _, req := range r.seen() {
		all = append(all, req.Header.Get("Range"))
	}
	return all
}

func (r *registry) seen() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*http.Request(nil), r.requests...)
}

// host is the registry as BuildKit would describe it.
func (r *registry) host() docker.RegistryHost {
	u, _ := url.Parse(r.URL)
	return docker.RegistryHost{
		Client: r.Client(), Scheme: u.Scheme, Host: u.Host, Path: "/v2",
		Capabilities: docker.HostCapabilityPull,
	}
}

// name is the registry's host and port.
func (r *registry) name() string { return r.host().Host }

// source is a source whose hosts are these.
func source(hosts ...docker.RegistryHost) Source {
	return Source{Repository: "library/image", Hosts: func() ([]docker.RegistryHost, error) { return hosts, nil }}
}

// open opens the blob of a registry over a line of its own.
func (r *registry) open(o Options) *Blob {
	return NewLine(o).Open(r.digest(), source(r.host()))
}

// openInProcess is open without a network, for a registry that serve did not make.
func (r *registry) openInProcess(o Options) *Blob {
	return NewLine(o).Open(r.digest(), source((&inProcess{serve: r.ServeHTTP}).host()))
}

func (r *registry) digest() digest.Digest { return digest.FromBytes(r.blob) }

// read reads a range to its end.
func read(ctx context.Context, v View, off, n int64) ([]byte, error) {
	rc, err := v.Range(ctx, off, n)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

// wantRange requires a range to be read as the blob has it.
func wantRange(t testing.TB, b *Blob, blob []byte, off, n int64) {
	t.Helper()
	got, err := read(t.Context(), b.With(Wanted), off, n)
	require.NoError(t, err)
	require.True(t, bytes.Equal(blob[off:off+n], got), "%d bytes at %d", n, off)
}

// wantError requires a read to end with an Error, and returns it.
func wantError(t testing.TB, b *Blob) *Error {
	t.Helper()
	_, err := read(t.Context(), b.With(Wanted), 0, 10)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, b.digest, e.Digest)
	return e
}

// first is a trouble of the first n requests.
func first(n int, f trouble) trouble {
	var mu sync.Mutex
	return func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		n--
		hit := n >= 0
		mu.Unlock()
		return hit && f(w, r)
	}
}

// after is a trouble of all but the first n requests.
func after(n int, f trouble) trouble {
	skip := first(n, func(http.ResponseWriter, *http.Request) bool { return true })
	return func(w http.ResponseWriter, r *http.Request) bool { return !skip(w, r) && f(w, r) }
}

// status answers with a status and headers, given as names and values.
func status(code int, headers ...string) trouble {
	return func(w http.ResponseWriter, r *http.Request) bool {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
		return true
	}
}

// unranged lets a server know no ranges, or no suffix ranges.
func unranged(suffixOnly bool) trouble {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !suffixOnly || isSuffix(r) {
			r.Header.Del("Range")
		}
		return false
	}
}

func isSuffix(r *http.Request) bool {
	return bytes.HasPrefix([]byte(r.Header.Get("Range")), []byte("bytes=-"))
}

// cut sends n bytes of the right answer and then ends the connection, unless
// that was all.
func cut(blob []byte, n int, end func(w http.ResponseWriter, r *http.Request)) trouble {
	return func(w http.ResponseWriter, r *http.Request) bool {
		sent := &cutWriter{ResponseWriter: w, left: n}
		if sendBlob(sent, r, blob); sent.cut {
			http.NewResponseController(w).Flush()
			end(w, r)
		}
		return true
	}
}

type cutWriter struct {
	http.ResponseWriter
	left int
	cut  bool
}

func (w *cutWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p[:min(len(p), w.left)])
	w.left -= n
	if err == nil && n < len(p) {
		w.cut, err = true, io.ErrShortWrite
	}
	return n, err
}

// Ways for a connection to end.

func reset(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
}

func truncate(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }

func silence(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// partial answers with a Content-Range of its own and n bytes.
func partial(contentRange string, n int) trouble {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if contentRange != "" {
			w.Header().Set("Content-Range", contentRange)
		}
		w.Header().Set("Content-Length", fmt.Sprint(n))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(make([]byte, n))
		return true
	}
}
