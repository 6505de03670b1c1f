package worker

import (
	"context"
	"errors"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/util/progress"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazy"
)

// An announcedCache hands out results that tell their lazy layers of the builds that
// read them, before BuildKit does.
//
// BuildKit does so with the lock of the result's record held, for which du, prune and
// other builds wait. It does not at all for a result that it has mounted for another
// build: it keeps the mount of one upon which nothing was built. A session that was told
// here has shown its rights, so that nobody is asked with the lock held.
//
// While layers are announced, mounted or unpacked, and while the daemon itself reads
// them, the builds that share the operation share their credentials, too.
type announcedCache struct {
	cache.Manager
	snapshots *announcing
	// handlers are those of the lazy layers that a build knows, or that are mounted.
	handlers func(ctx context.Context) func(blob digest.Digest) *cache.DescHandler
}

func (c *announcedCache) result(ref cache.ImmutableRef, err error) (cache.ImmutableRef, error) {
	if err != nil || ref == nil {
		return nil, err
	}
	return &announcedRef{ref, c}, nil
}

func (c *announcedCache) mutable(ref cache.MutableRef, err error) (cache.MutableRef, error) {
	if err != nil {
		return nil, err
	}
	return &announcedMutable{ref, c}, nil
}

// bare returns BuildKit's own reference, which has the handlers of lazy layers.
func bare(ref cache.ImmutableRef) cache.ImmutableRef {
	if r, ok := ref.(*announcedRef); ok {
		return r.ImmutableRef
	}
	return ref
}

func (c *announcedCache) GetByBlob(ctx context.Context, desc ocispecs.Descriptor, parent cache.ImmutableRef, opts ...cache.RefOption) (cache.ImmutableRef, error) {
	return c.result(c.Manager.GetByBlob(ctx, desc, bare(parent), opts...))
}

// Get requires handlers for all lazy layers of a result. BuildKit takes a lazy layer that
// it has unpacked as well for one that is not lazy, and requires no handler for it.
func (c *announcedCache) Get(ctx context.Context, id string, pg progress.Controller, opts ...cache.RefOption) (cache.ImmutableRef, error) {
	ref, err := c.result(c.Manager.Get(ctx, id, pg, opts...))
	if err != nil || ref == nil {
		return nil, err
	}
	missing, err := c.unhandled(ctx, ref)
	if err == nil && len(missing) > 0 {
		err = missing
	}
	if err != nil {
		return nil, errors.Join(err, ref.Release(context.WithoutCancel(ctx)))
	}
	return ref, nil
}

// unhandled returns the blobs of the lazy layers of a result for which it has no handler.
func (c *announcedCache) unhandled(ctx context.Context, ref cache.ImmutableRef) (missing cache.NeedsRemoteProviderError, err error) {
	chain := ref.LayerChain()
	defer chain.Release(context.WithoutCancel(ctx))
	for _, layer := range chain {
		blob := blobOf(layer)
		if blob == "" || ref.DescHandler(blob) != nil {
			continue
		}
		info, err := c.snapshots.Stat(ctx, layer.GetString(snapshotKey))
		if err == nil && isLazy(info) {
			missing = append(missing, blob)
		} else if err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	return missing, nil
}

// part gets a reference that a result was made of, with handlers for its lazy layers.
func (c *announcedCache) part(ctx context.Context, of cache.Ref, id string) (cache.ImmutableRef, error) {
	get := func(handlers cache.DescHandlers) (cache.ImmutableRef, error) {
		return c.Get(ctx, id, nil, cache.NoUpdateLastUsed, handlers)
	}
	return withHandlers(get, c.handler(ctx, of))
}

// handler returns the handlers that a result has, and those that are known besides.
func (c *announcedCache) handler(ctx context.Context, of cache.Ref) func(blob digest.Digest) *cache.DescHandler {
	return func(blob digest.Digest) *cache.DescHandler {
		if h := of.DescHandler(blob); h != nil {
			return h
		}
		return c.handlers(ctx)(blob)
	}
}

// New extracts the parent itself: BuildKit does so too, and does not release what it has
// of the parent if that fails.
func (c *announcedCache) New(ctx context.Context, parent cache.ImmutableRef, s session.Group, opts ...cache.RefOption) (cache.MutableRef, error) {
	if parent != nil {
		defer c.share(parent, s)()
		if err := parent.Extract(ctx, s); err != nil {
			return nil, err
		}
	}
	return c.mutable(c.Manager.New(ctx, bare(parent), s, opts...))
}

func (c *announcedCache) GetMutable(ctx context.Context, id string, opts ...cache.RefOption) (cache.MutableRef, error) {
	return c.mutable(c.Manager.GetMutable(ctx, id, opts...))
}

func (c *announcedCache) Merge(ctx context.Context, parents []cache.ImmutableRef, pg progress.Controller, opts ...cache.RefOption) (cache.ImmutableRef, error) {
	bared := make([]cache.ImmutableRef, len(parents))
	for i, parent := range parents {
		bared[i] = bare(parent)
	}
	return c.result(c.Manager.Merge(ctx, bared, pg, opts...))
}

func (c *announcedCache) Diff(ctx context.Context, lower, upper cache.ImmutableRef, pg progress.Controller, opts ...cache.RefOption) (cache.ImmutableRef, error) {
	return c.result(c.Manager.Diff(ctx, bare(lower), bare(upper), pg, opts...))
}

// announce tells the lazy layers of a result of the builds that are about to mount it,
// and mounts or unpacks those that are not. A layer that has become lazy since the
// result was loaded may have no handler. Its snapshot knows where it came from.
func (c *announcedCache) announce(ctx context.Context, ref cache.ImmutableRef, s session.Group) error {
	defer c.share(ref, s)()
	chain := ref.LayerChain()
	defer chain.Release(context.WithoutCancel(ctx))
	handler := c.handler(ctx, ref)
	var below []string
	for _, layer := range chain {
		info, err := c.snapshots.Stat(ctx, layer.GetString(snapshotKey))
		if errdefs.IsNotFound(err) {
			continue // BuildKit is still to prepare it, or it is what a step has just written
		}
		if err != nil {
			return err
		}
		if !isLazy(info) {
			continue
		}
		labels := info.Labels
		if h := handler(blobOf(layer)); h != nil {
			labels = h.SnapshotLabels
		}
		if err := c.snapshots.announce(ctx, info, lazy.CallLabels(labels, session.AllSessionIDs(s))); err != nil {
			return err
		}
		below = append(below, info.Labels[targetLabel])
	}
	return c.snapshots.show(ctx, below...)
}

// share says, until end is called, that an operation of some sessions uses the layers of
// a result.
func (c *announcedCache) share(ref cache.ImmutableRef, s session.Group) (end func()) {
	return c.snapshots.layers.Share(usedBy(ref), s)
}

// announceParts is announce for what BuildKit reads to make some layers of a result: the
// files of a merge or a diff, or the blob of a layer. BuildKit reads it through
// references of its own, which have the handlers of another build, or none. What has to
// be pulled of the parts is pulled at once, as BuildKit does it.
func (c *announcedCache) announceParts(ctx context.Context, ref cache.ImmutableRef, s session.Group, made func(layer cache.ImmutableRef) bool) error {
	chain := ref.LayerChain()
	defer chain.Release(context.WithoutCancel(ctx))
	all, ctx := errgroup.WithContext(ctx)
	covered := "" // the layer that is announced with the one above it
	for _, layer := range slices.Backward(chain) {
		if layer.ID() != covered {
			if !made(layer) {
				continue
			}
			for _, id := range partsOf(layer) {
				all.Go(func() error { return c.announcePart(ctx, ref, id, s) })
			}
		}
		covered = layer.GetString(parentKey)
	}
	return all.Wait()
}

func (c *announcedCache) announcePart(ctx context.Context, of cache.Ref, id string, s session.Group) error {
	part, err := c.part(ctx, of, id)
	if err != nil {
		return err
	}
	defer part.Release(context.WithoutCancel(ctx))
	if err := part.Extract(ctx, s); err != nil {
		return err
	}
	return c.announce(ctx, part, s)
}

type announcedRef struct {
	cache.ImmutableRef
	cache *announcedCache
}

// Mount announces the layers that there are when it has extracted them all.
func (r *announcedRef) Mount(ctx context.Context, readonly bool, s session.Group) (snapshot.Mountable, error) {
	if err := r.Extract(ctx, s); err != nil {
		return nil, err
	}
	if err := r.cache.announce(ctx, r.ImmutableRef, s); err != nil {
		return nil, err
	}
	m, err := r.ImmutableRef.Mount(ctx, readonly, s)
	if err != nil {
		return nil, err
	}
	return &sharedMountable{m, func() (end func()) { return r.cache.share(r.ImmutableRef, s) }}, nil
}

// A sharedMountable is shared by the builds of an operation from Mount to the release.
type sharedMountable struct {
	snapshot.Mountable
	share func() (end func())
}

func (m *sharedMountable) Mount() ([]mount.Mount, func() error, error) {
	end := m.share()
	mounts, release, err := m.Mountable.Mount()
	if err != nil {
		end()
		return nil, nil, err
	}
	return mounts, func() error {
		defer end()
		return release()
	}, nil
}

// Extract makes the files of a merge or a diff if they are not here, for which it may
// mount layers or unpack them. The files of a diff of one layer are compared with the
// layers below it, which are no layers of the diff.
func (r *announcedRef) Extract(ctx context.Context, s session.Group) error {
	defer r.cache.share(r.ImmutableRef, s)()
	if isComputed(r) {
		_, err := r.cache.snapshots.Stat(ctx, r.GetString(snapshotKey))
		if errdefs.IsNotFound(err) {
			err = r.cache.announceParts(ctx, r.ImmutableRef, s, func(cache.ImmutableRef) bool { return true })
		}
		if err != nil {
			return err
		}
	}
	return r.ImmutableRef.Extract(ctx, s)
}

// GetRemotes makes the blobs that there are not.
func (r *announcedRef) GetRemotes(ctx context.Context, createIfNeeded bool, cfg cacheconfig.RefConfig, all bool, s session.Group) ([]*solver.Remote, error) {
	if createIfNeeded {
		hasNone := func(layer cache.ImmutableRef) bool { return blobOf(layer) == "" }
		if err := r.cache.announceParts(ctx, r.ImmutableRef, s, hasNone); err != nil {
			return nil, err
		}
	}
	return r.ImmutableRef.GetRemotes(ctx, createIfNeeded, cfg, all, s)
}

// LayerChain returns layers of which each pulls its blob with the handlers of the result.
func (r *announcedRef) LayerChain() cache.RefList {
	chain := r.ImmutableRef.LayerChain()
	for i, layer := range chain {
		chain[i] = &chainedLayer{layer, r}
	}
	return chain
}

func (r *announcedRef) Clone() cache.ImmutableRef {
	return &announcedRef{r.ImmutableRef.Clone(), r.cache}
}

// A chainedLayer is one of the layers of a result.
type chainedLayer struct {
	cache.ImmutableRef
	result *announcedRef
}

// FileList pulls the blob of a lazy layer to list its files for an SBOM.
func (l *chainedLayer) FileList(ctx context.Context, s session.Group) ([]string, error) {
	ref, err := l.result.cache.part(ctx, l.result, l.ID())
	if err != nil {
		return nil, err
	}
	defer ref.Release(context.WithoutCancel(ctx))
	return ref.FileList(ctx, s)
}

type announcedMutable struct {
	cache.MutableRef
	cache *announcedCache
}

// Mount announces the layers below. When BuildKit has got the reference from the cache,
// as that of a cache mount, it does not do so.
func (r *announcedMutable) Mount(ctx context.Context, readonly bool, s session.Group) (snapshot.Mountable, error) {
	if id := r.GetString(parentKey); id != "" {
		parent, err := r.cache.part(ctx, r, id)
		if err != nil {
			return nil, err
		}
		defer parent.Release(context.WithoutCancel(ctx))
		if err := r.cache.announce(ctx, parent, s); err != nil {
			return nil, err
		}
	}
	return r.MutableRef.Mount(ctx, readonly, s)
}

func (r *announcedMutable) Commit(ctx context.Context) (cache.ImmutableRef, error) {
	return r.cache.result(r.MutableRef.Commit(ctx))
}

// An announcedSource does so for images, which BuildKit takes from a cache of its own.
type announcedSource struct {
	source.Source
	cache *announcedCache
}

func (s *announcedSource) Resolve(ctx context.Context, id source.Identifier, sm *session.Manager, v solver.Vertex) (source.SourceInstance, error) {
	i, err := s.Source.Resolve(ctx, id, sm, v)
	if err != nil {
		return nil, err
	}
	return &announcedInstance{i, s.cache}, nil
}

type announcedInstance struct {
	source.SourceInstance
	cache *announcedCache
}

func (i *announcedInstance) Snapshot(ctx context.Context, job solver.JobContext) (cache.ImmutableRef, error) {
	return i.cache.result(i.SourceInstance.Snapshot(ctx, job))
}
