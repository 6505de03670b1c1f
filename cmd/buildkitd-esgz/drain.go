package main

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// A drain tells when the builds of a server have ended. GracefulStop of gRPC alone
// breaks those that run: it makes clients open another connection for their next
// call, which is refused, and a client of a build makes calls until the end of it.
// It is safe for concurrent use.
type drain struct {
	mu      sync.Mutex
	ending  bool
	solves  int           // calls in progress
	clients int           // open connections that have made such a call
	changed chan struct{} // closed, and replaced, when one of these falls
}

func newDrain() *drain { return &drain{changed: make(chan struct{})} }

// onCall counts builds, and refuses new ones when the daemon ends.
func (d *drain) onCall(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if info.FullMethod != "/moby.buildkit.v1.Control/Solve" {
		return handler(ctx, req)
	}
	if !d.begin(ctx) {
		return nil, status.Error(codes.Unavailable, "the build daemon is stopping and takes no more builds")
	}
	defer d.end(&d.solves)
	return handler(ctx, req)
}

// A connection has built something, or not.
type connection struct{ built bool }

type connectionKey struct{}

func (d *drain) begin(ctx context.Context) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ending {
		return false
	}
	d.solves++
	if c, ok := ctx.Value(connectionKey{}).(*connection); ok && !c.built {
		c.built = true
		d.clients++
	}
	return true
}

func (d *drain) end(count *int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	*count--
	close(d.changed)
	d.changed = make(chan struct{})
}

// wait refuses new builds and returns when those that run have ended and their
// clients have gone, who may still ask for the record of their build. Clients that
// stay are waited for no longer than lastWords.
func (d *drain) wait(ctx context.Context) {
	d.mu.Lock()
	d.ending = true
	d.mu.Unlock()
	d.until(ctx, &d.solves)
	ctx, cancel := context.WithTimeout(ctx, lastWords)
	defer cancel()
	d.until(ctx, &d.clients)
}

// until waits for a count to be zero, or the end of ctx.
func (d *drain) until(ctx context.Context, count *int) {
	for {
		d.mu.Lock()
		n, changed := *count, d.changed
		d.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// TagConn, HandleConn, TagRPC and HandleRPC make it a stats.Handler.
func (d *drain) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return context.WithValue(ctx, connectionKey{}, &connection{})
}

func (d *drain) HandleConn(ctx context.Context, s stats.ConnStats) {
	c, ok := ctx.Value(connectionKey{}).(*connection)
	if _, end := s.(*stats.ConnEnd); !ok || !end {
		return
	}
	d.mu.Lock()
	built := c.built
	c.built = true // no call that comes late counts
	d.mu.Unlock()
	if built {
		d.end(&d.clients)
	}
}

func (d *drain) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (d *drain) HandleRPC(context.Context, stats.RPCStats) {}

var _ stats.Handler = (*drain)(nil)
