package worker

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// namedImages knows which images the running builds have named. It is safe for
// concurrent use.
//
// BuildKit's solver merges sources with the same manifest: a build then gets the result
// of another one, with handlers that lead to the registry of that one, and its own
// sessions. It has shown to its own registry that it may read the manifest, and need not
// know the other one, or may have no credentials for it.
type namedImages struct {
	mu     sync.Mutex
	images []*namedImage // the latest last
}

// A namedImage is a source whose manifest is known.
type namedImage struct {
	by       []string      // sessions of the builds that had named it when it was resolved
	sessions session.Group // of those that have named it, or have a result of it by now
	handlers cache.DescHandlers
}

// add notes an image until BuildKit forgets its source. The options are those that come
// with its cache key, and may be added once. Who pulls with their handlers then pulls from
// the images that its own builds have named.
func (n *namedImages) add(job solver.JobContext, opts solver.CacheOpts) error {
	image := &namedImage{by: session.AllSessionIDs(job.Session()), sessions: job.Session(), handlers: cache.DescHandlers{}}
	for key, value := range opts {
		blob, isKey := key.(cache.DescHandlerKey)
		if h, ok := value.(*cache.DescHandler); ok && isKey {
			own := *h
			image.handlers[digest.Digest(blob)] = &own
			h.Provider = func(g session.Group) content.Provider { return &namedProvider{n, &own, g} }
		}
	}
	n.mu.Lock()
	n.images = append(n.images, image)
	n.mu.Unlock()
	return job.Cleanup(func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.images = slices.DeleteFunc(n.images, func(i *namedImage) bool { return i == image })
		return nil
	})
}

// of returns the handlers for a blob in the images that a session has named. If it has
// joined the sources of other builds only, they are those of the sources, the latest
// first: BuildKit tells nobody which of them it has named, and a source that others are
// merged into is older than these.
func (n *namedImages) of(id string, blob digest.Digest) []*cache.DescHandler {
	n.mu.Lock() // and not while sessions are asked for, which takes BuildKit's locks
	images := slices.Clone(n.images)
	n.mu.Unlock()
	images = slices.DeleteFunc(images, func(i *namedImage) bool { return i.handlers[blob] == nil })
	slices.Reverse(images)
	own := func(i *namedImage) bool { return slices.Contains(i.by, id) }
	if !slices.ContainsFunc(images, own) {
		own = func(i *namedImage) bool { return slices.Contains(session.AllSessionIDs(i.sessions), id) }
	}
	var handlers []*cache.DescHandler
	for _, i := range images {
		if own(i) {
			handlers = append(handlers, i.handlers[blob])
		}
	}
	return handlers
}

// refs returns the names of these images.
func (n *namedImages) refs(id string, blob digest.Digest) []string {
	var refs []string
	for _, h := range n.of(id, blob) {
		if !slices.Contains(refs, h.Ref) {
			refs = append(refs, h.Ref)
		}
	}
	return refs
}

// A namedProvider pulls the blob of a result for some sessions.
type namedProvider struct {
	named    *namedImages
	result   *cache.DescHandler // of the image that the result comes from
	sessions session.Group
}

func (p *namedProvider) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	var handlers []*cache.DescHandler
	by := map[*cache.DescHandler][]string{}
	for _, id := range session.AllSessionIDs(p.sessions) {
		for _, h := range p.named.of(id, desc.Digest) {
			if by[h] == nil {
				handlers = append(handlers, h)
			}
			by[h] = append(by[h], id)
		}
	}
	if len(handlers) == 0 || len(handlers) == 1 && handlers[0] == p.result {
		return p.result.Provider(p.sessions).ReaderAt(ctx, desc)
	}
	var errs error
	for _, h := range handlers {
		r, err := h.Provider(session.NewGroup(by[h]...)).ReaderAt(ctx, desc)
		if err == nil {
			return r, nil
		}
		errs = errors.Join(errs, err)
	}
	return nil, errs
}
