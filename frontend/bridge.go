package frontend

import (
	"context"
	"sync"

	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
)

// A build is one call of a frontend, with all that it calls in turn. It is
// safe for concurrent use.
type build struct {
	mu      sync.Mutex
	origins map[digest.Digest]origin
}

// An origin is how a definition was solved. What is derived from it has to be
// solved in the same way: with the same source policies, or it would use
// sources that they forbid, with the same cache, or it would build the target
// again, and by the same bridge, whose frontend the provenance names.
type origin struct {
	bridge frontend.FrontendLLBBridge
	how    frontend.SolveRequest
}

// solve returns a proxy: nothing is built before its result is asked for.
func (o origin) solve(ctx context.Context, def *pb.Definition, sid string) (solver.ResultProxy, error) {
	req := o.how
	req.Definition = def
	res, err := o.bridge.Solve(ctx, req, sid)
	if err != nil {
		return nil, err
	}
	return res.SingleRef()
}

type buildKey struct{}

// buildOf returns the build that ctx is part of, nil if it begins one.
func buildOf(ctx context.Context) *build {
	b, _ := ctx.Value(buildKey{}).(*build)
	return b
}

// within returns a bridge whose users are part of the build.
func (b *build) within(bridge frontend.FrontendLLBBridge) frontend.FrontendLLBBridge {
	return &listener{FrontendLLBBridge: bridge, build: b}
}

// A listener is a bridge that remembers how definitions are solved.
type listener struct {
	frontend.FrontendLLBBridge
	build *build
}

func (l *listener) Solve(ctx context.Context, req frontend.SolveRequest, sid string) (*frontend.Result, error) {
	if req.Definition != nil {
		l.build.remember(req, l.FrontendLLBBridge)
	}
	// A frontend that is an image calls through a pipe, with a context of that.
	return l.FrontendLLBBridge.Solve(context.WithValue(ctx, buildKey{}, l.build), req, sid)
}

func (b *build) remember(req frontend.SolveRequest, bridge frontend.FrontendLLBBridge) {
	how := frontend.SolveRequest{CacheImports: req.CacheImports, SourcePolicies: req.SourcePolicies}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.origins == nil {
		b.origins = map[digest.Digest]origin{}
	}
	id := identity(req.Definition)
	if _, known := b.origins[id]; !known {
		b.origins[id] = origin{bridge: bridge, how: how}
	}
}

// originOf returns how def was solved. The bridge stands in for a definition
// that nobody saw.
func (b *build) originOf(def *pb.Definition, bridge frontend.FrontendLLBBridge) origin {
	b.mu.Lock()
	defer b.mu.Unlock()
	if o, ok := b.origins[identity(def)]; ok {
		return o
	}
	return origin{bridge: bridge}
}

// identity tells definitions apart by their last operation, which names all
// others by their digests.
func identity(def *pb.Definition) digest.Digest {
	if def == nil || len(def.Def) == 0 {
		return ""
	}
	return digest.FromBytes(def.Def[len(def.Def)-1])
}
