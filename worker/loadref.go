package worker

import (
	"context"
	"errors"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/contentutil"
	"github.com/moby/buildkit/util/resolver"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// LoadRef loads a result of the build cache. BuildKit wants to know where the
// blobs of lazy layers come from, and asks the build, which pulls them at the
// time. When it starts there is none, and it would forget all results upon lazy
// layers; but these are here, and know where they came from.
func (d *decorated) LoadRef(ctx context.Context, id string, hidden bool) (cache.ImmutableRef, error) {
	ref, err := d.Worker.LoadRef(ctx, id, hidden)
	if d.opt.layers == nil || !errors.As(err, new(cache.NeedsRemoteProviderError)) {
		return ref, err
	}
	var opts []cache.RefOption
	if hidden {
		opts = append(opts, cache.NoUpdateLastUsed)
	}
	pg := solver.ProgressControllerFromContext(ctx)
	get := func(handlers cache.DescHandlers) (cache.ImmutableRef, error) {
		return d.CacheMgr.Get(ctx, id, pg, append(opts[:len(opts):len(opts)], handlers)...)
	}
	return withHandlers(get, d.handlerIn(ctx))
}

// handlerIn returns the handlers of the layers of a build's images, and of those that
// are mounted.
func (d *decorated) handlerIn(ctx context.Context) func(blob digest.Digest) *cache.DescHandler {
	return func(blob digest.Digest) *cache.DescHandler {
		if h := ofBuild(ctx, blob); h != nil {
			return h
		}
		return d.ofLayer(blob)
	}
}

// withHandlers gets a reference with handlers for the blobs that it needs some
// for. Which ones get names are those that it was given none for.
func withHandlers[Ref any](get func(cache.DescHandlers) (Ref, error), of func(blob digest.Digest) *cache.DescHandler) (ref Ref, err error) {
	handlers := cache.DescHandlers{}
	for {
		ref, err = get(handlers)
		var missing cache.NeedsRemoteProviderError
		if !errors.As(err, &missing) {
			return ref, err
		}
		for _, blob := range missing {
			h := of(blob)
			if h == nil || handlers[blob] != nil {
				return ref, err
			}
			handlers[blob] = h
		}
	}
}

// ofBuild returns the handler of a build that knows the blob.
func ofBuild(ctx context.Context, blob digest.Digest) *cache.DescHandler {
	known := solver.CacheOptGetterOf(ctx)
	if known == nil {
		return nil
	}
	key := cache.DescHandlerKey(blob)
	h, _ := known(true, key)[key].(*cache.DescHandler)
	return h
}

// ofLayer returns one for the blob of a layer that is mounted.
func (d *decorated) ofLayer(blob digest.Digest) *cache.DescHandler {
	if d.opt.layers == nil {
		return nil
	}
	origin, ok := d.opt.layers.Origin(blob)
	if !ok {
		return nil
	}
	return &cache.DescHandler{
		Provider:       func(g session.Group) content.Provider { return &puller{host: d.opt.host, ref: origin.Ref, session: g} },
		SnapshotLabels: origin.Snapshot,
		Annotations:    origin.Annotations,
		Ref:            origin.Ref,
	}
}

// A puller reads whole blobs of an image, with the credentials of a session.
type puller struct {
	host    Host
	ref     string
	session session.Group
}

func (p *puller) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	r := resolver.DefaultPool.GetResolver(p.host.Registries, p.ref, resolver.ScopeType{}, p.host.Sessions, p.session)
	fetcher, err := r.Fetcher(ctx, p.ref)
	if err != nil {
		return nil, err
	}
	return contentutil.FromFetcher(fetcher).ReaderAt(ctx, desc)
}
