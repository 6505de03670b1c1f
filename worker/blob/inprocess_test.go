package blob

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// inProcess is a registry without a network, for tests in which time does not
// pass by itself. What it writes is there at once, unless it sleeps.
type inProcess struct {
	serve func(http.ResponseWriter, *http.Request)
	dial  time.Duration // that a request waits for its connection

	mu    sync.Mutex
	count int
	times []time.Time
}

func (p *inProcess) host() docker.RegistryHost {
	return docker.RegistryHost{
		Client: &http.Client{Transport: p}, Scheme: "http", Host: "registry.example", Path: "/v2",
		Capabilities: docker.HostCapabilityPull,
	}
}

func (p *inProcess) requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

func (p *inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	p.mu.Lock()
	p.count++
	p.times = append(p.times, time.Now())
	p.mu.Unlock()
	time.Sleep(p.dial)
	if trace := httptrace.ContextClientTrace(r.Context()); trace != nil {
		trace.WroteRequest(httptrace.WroteRequestInfo{})
	}
	ctx, cancel := context.WithCancel(r.Context())
	body, out := io.Pipe()
	w := &pipeWriter{header: http.Header{}, out: out, started: make(chan *http.Response, 1), request: r, body: &cancelledBody{body, cancel}}
	stop := context.AfterFunc(ctx, func() { out.CloseWithError(ctx.Err()); body.CloseWithError(ctx.Err()) })
	go func() {
		defer stop()
		defer func() {
			if recover() != nil { // as net/http does when a handler aborts
				out.CloseWithError(io.ErrUnexpectedEOF)
			}
		}()
		p.serve(w, r.Clone(ctx))
		w.WriteHeader(http.StatusOK)
		out.Close()
	}()
	select {
	case resp := <-w.started:
		return resp, nil
	case <-ctx.Done():
		cancel()
		return nil, ctx.Err()
	}
}

type cancelledBody struct {
	io.ReadCloser
	cancel func()
}

func (b *cancelledBody) Close() error {
	b.cancel()
	return b.ReadCloser.Close()
}

type pipeWriter struct {
	header  http.Header
	out     *io.PipeWriter
	started chan *http.Response
	request *http.Request
	body    io.ReadCloser
	once    sync.Once
}

func (w *pipeWriter) FlushError() error { return nil }

func (w *pipeWriter) Header() http.Header { return w.header }

func (w *pipeWriter) WriteHeader(code int) {
	w.once.Do(func() {
		length := int64(-1)
		if n, err := strconv.ParseInt(w.header.Get("Content-Length"), 10, 64); err == nil {
			length = n
		}
		w.started <- &http.Response{
			StatusCode: code, Status: fmt.Sprint(code), Header: w.header, Body: w.body,
			ContentLength: length, Request: w.request,
		}
	})
}

func (w *pipeWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.out.Write(p)
}
