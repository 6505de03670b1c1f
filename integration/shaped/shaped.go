// Package shaped puts a slow line before a registry on this machine: a reverse
// proxy whose requests take a round trip each, and whose answers share a rate.
// It remembers every request, so that tests and benchmarks can count what a
// client fetched.
//
// What goes up to the registry is not slowed down, and neither are headers:
// what it imitates is a node that pulls. Blobs are not changed, and redirects
// lead to the proxy, because the registry sees the proxy's address as its own.
package shaped

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"
)

// A Link is a line between a client and a registry.
type Link struct {
	// Delay is a round trip. A request takes one, setting up its connection
	// another.
	Delay time.Duration
	// BytesPerSecond is what all connections together carry; zero is no limit.
	BytesPerSecond int64
}

// A Proxy stands before a registry. Its methods may be called at any time, from
// many goroutines.
type Proxy struct {
	link    Link
	pipe    pipe
	journal journal
	forward httputil.ReverseProxy
	server  http.Server
	address string
	served  chan error
}

// New starts a proxy on a free port of this machine, before the registry at an
// address (host:port) that speaks plain HTTP. Close ends it.
func New(upstream string, link Link) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return Serve(l, upstream, link, nil), nil
}

// Serve starts a proxy on a listener, which Close closes. Each request is told
// to done when it has ended, if done is not nil.
func Serve(l net.Listener, upstream string, link Link, done func(Request)) *Proxy {
	p := newProxy(upstream, link, done)
	p.address = l.Addr().String()
	p.served = make(chan error, 1)
	go func() { p.served <- p.server.Serve(l) }()
	return p
}

func newProxy(upstream string, link Link, done func(Request)) *Proxy {
	p := &Proxy{link: link, pipe: pipe{bytesPerSecond: link.BytesPerSecond}, journal: journal{done: done}}
	p.forward = httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: upstream})
			r.Out.Host = r.In.Host
		},
		// Connections to the registry cost nothing if they are kept, and what
		// it says stays as it is.
		Transport:  &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true},
		BufferPool: &buffers,
	}
	p.server.Handler = p
	p.server.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, connected{}, time.Now().Add(link.Delay))
	}
	return p
}

// connected is the key, in a request's context, of the time at which its
// connection was set up.
type connected struct{}

// Addr is where the proxy listens: host:port.
func (p *Proxy) Addr() string { return p.address }

// Requests returns all requests since the start or the last Reset, in the order
// in which they came. Those that are still being answered have no Seconds.
func (p *Proxy) Requests() []Request { return p.journal.since(time.Time{}) }

// Since returns the requests that came at or after a time.
func (p *Proxy) Since(mark time.Time) []Request { return p.journal.since(mark) }

// Reset forgets the requests that came so far.
func (p *Proxy) Reset() { p.journal.reset() }

// Close ends the proxy and all that is in flight.
func (p *Proxy) Close() error {
	err := p.server.Close()
	p.forward.Transport.(*http.Transport).CloseIdleConnections()
	if served := <-p.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// ServeHTTP answers a request after its round trip, at the pace of the link.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	entry := p.journal.begin(r)
	defer p.journal.end(entry)
	asked := time.Now()
	if ready, ok := r.Context().Value(connected{}).(time.Time); ok && ready.After(asked) {
		asked = ready
	}
	ready := asked.Add(p.link.Delay)
	if sleepUntil(r.Context(), ready) != nil {
		return
	}
	p.forward.ServeHTTP(&pacedWriter{ResponseWriter: w, ctx: r.Context(), pipe: &p.pipe, entry: entry}, r)
}
