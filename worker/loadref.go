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
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// LoadRef loads a result of the build cache. BuildKit wants to know where the
// blobs of lazy layers come from, and asks the build, which pulls them at the
// time. When it starts there is none, and it would forget all results upon lazy
// layers; but these are here, and know where they came from.
func (d *decorated) LoadRef(ctx context.Context, id string, hidden bool) (cache.ImmutableRef, error) {
	ref, err := d.Worker.LoadRef(ctx, id, hidden)
	var missing cache.NeedsRemoteProviderError
	if d.opt.layers == nil || !errors.As(err, &missing) {
		return ref, err
	}
	handlers := cache.DescHandlers{}
	for _, blob := range missing {
		labels, ok := d.opt.layers.Labels(blob)
		if !ok {
			return nil, err
		}
		handlers[blob] = &cache.DescHandler{
			Provider:       func(g session.Group) content.Provider { return &puller{host: d.opt.host, ref: labels.Ref, session: g} },
			SnapshotLabels: labels.Snapshot,
			Annotations:    labels.Annotations,
			Ref:            labels.Ref,
		}
	}
	opts := []cache.RefOption{handlers}
	if hidden {
		opts = append(opts, cache.NoUpdateLastUsed)
	}
	return d.CacheMgr.Get(ctx, id, solver.ProgressControllerFromContext(ctx), opts...)
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
