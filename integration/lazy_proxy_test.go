package integration

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
)

// A gate stands before the shared registry and does to the requests for parts of
// blobs what the test wants. Whole blobs, such as an image's configuration, are
// BuildKit's own affair.
type gate struct {
	address string
	fault   atomic.Pointer[http.Handler] // nil lets everything through
	forward http.Handler
}

func newGate(t *testing.T) *gate {
	t.Helper()
	g := &gate{forward: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry(t)})}
	srv := httptest.NewServer(g)
	t.Cleanup(srv.Close)
	g.address = srv.Listener.Addr().String()
	return g
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if fault := g.fault.Load(); fault != nil && r.Header.Get("Range") != "" {
		(*fault).ServeHTTP(w, r)
		return
	}
	g.forward.ServeHTTP(w, r)
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

// everyOther lets a function answer every other of them.
func (g *gate) everyOther(f func(http.ResponseWriter, *http.Request)) {
	var n atomic.Int64
	g.do(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1)%2 == 1 {
			f(w, r)
			return
		}
		g.forward.ServeHTTP(w, r)
	})
}

// reset cuts the connection after some of the answer.
func (g *gate) reset(w http.ResponseWriter, r *http.Request) {
	g.forward.ServeHTTP(&limitedWriter{ResponseWriter: w, left: 1000, end: func() { panic(http.ErrAbortHandler) }}, r)
}

// stall keeps the connection open after some of the answer.
func (g *gate) stall(w http.ResponseWriter, r *http.Request) {
	g.forward.ServeHTTP(&limitedWriter{ResponseWriter: w, left: 1000, end: func() {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}}, r)
}

// corrupt answers with wrong bytes.
func (g *gate) corrupt(w http.ResponseWriter, r *http.Request) {
	g.forward.ServeHTTP(&wrongWriter{w}, r)
}

// wrongRange answers with the beginning of the blob, whatever was asked for.
func (g *gate) wrongRange(w http.ResponseWriter, r *http.Request) {
	r.Header.Set("Range", "bytes=0-99")
	g.forward.ServeHTTP(w, r)
}

func (g *gate) status(code int) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "a fault", code) }
}

type limitedWriter struct {
	http.ResponseWriter
	left int
	end  func()
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	if len(p) < w.left {
		w.left -= len(p)
		return w.ResponseWriter.Write(p)
	}
	_, _ = w.ResponseWriter.Write(p[:w.left])
	w.end()
	return w.left, http.ErrBodyNotAllowed
}

type wrongWriter struct{ http.ResponseWriter }

func (w *wrongWriter) Write(p []byte) (int, error) {
	wrong := make([]byte, len(p))
	for i, c := range p {
		wrong[i] = c ^ 0x55
	}
	return w.ResponseWriter.Write(wrong)
}
