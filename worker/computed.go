package worker

import (
	"cmp"
	"context"
	"errors"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	bkworker "github.com/moby/buildkit/worker"
	"github.com/opencontainers/go-digest"
)

// A computedOp is BuildKit's operation for a merge or a diff.
//
// BuildKit computes the files of a diff when they are needed, of two references that
// are no layers of it: it tells the layers of these of no build. If some of them may be
// lazy, the build that makes the diff has to show here that it may read them, and its
// files are computed at once: who finds the diff in the cache later need not show it,
// as with the result of a command.
type computedOp struct {
	watchedOp
	worker *decorated
	diff   bool
}

// The parents of a diff in BuildKit's metadata.
const (
	lowerKey = "cache.lowerDiffParent"
	upperKey = "cache.upperDiffParent"
)

func (o *computedOp) Exec(ctx context.Context, job solver.JobContext, inputs []solver.Result) ([]solver.Result, error) {
	end := o.layers.Watch(ctx, usedBy(refsOf(inputs)...), job.Session())
	outputs, err := o.exec(ctx, job, inputs)
	return outputs, end(err)
}

func (o *computedOp) exec(ctx context.Context, job solver.JobContext, inputs []solver.Result) (outputs []solver.Result, err error) {
	if o.diff {
		for _, r := range inputs {
			if _, err := o.use(ctx, job.Session(), refOf(r)); err != nil {
				return nil, err
			}
		}
	}
	if outputs, err = o.Op.Exec(ctx, job, inputs); err != nil {
		return nil, err
	}
	for _, r := range outputs {
		err = errors.Join(err, o.compute(ctx, job.Session(), refOf(r)))
	}
	if err == nil {
		return outputs, nil
	}
	for _, r := range outputs {
		err = errors.Join(err, r.Release(context.WithoutCancel(ctx)))
	}
	return nil, err
}

// use tells the layers of a reference of the builds that are about to read it, and says
// whether any of them may be lazy.
func (o *computedOp) use(ctx context.Context, g session.Group, ref cache.ImmutableRef) (lazy bool, err error) {
	if ref == nil || !o.mayBeLazy(ref) {
		return false, nil
	}
	if err := ref.Extract(ctx, g); err != nil {
		return true, err
	}
	return true, o.worker.announced.announce(ctx, ref, g)
}

// compute computes the files of a reference if there are diffs of lazy layers in it.
func (o *computedOp) compute(ctx context.Context, g session.Group, ref cache.ImmutableRef) error {
	if ref == nil {
		return nil
	}
	layers := ref.LayerChain()
	defer layers.Release(context.WithoutCancel(ctx))
	lazy := false
	for _, layer := range layers {
		for _, parent := range []string{layer.GetString(lowerKey), layer.GetString(upperKey)} {
			if parent == "" {
				continue
			}
			is, err := o.useParent(ctx, g, parent, ref)
			if err != nil {
				return err
			}
			lazy = lazy || is
		}
	}
	if !lazy {
		return nil
	}
	return ref.Extract(ctx, g)
}

func (o *computedOp) useParent(ctx context.Context, g session.Group, id string, of cache.ImmutableRef) (lazy bool, err error) {
	handler := func(blob digest.Digest) *cache.DescHandler {
		return cmp.Or(of.DescHandler(blob), o.worker.handlerIn(ctx)(blob))
	}
	parent, err := o.worker.get(ctx, id, handler, cache.NoUpdateLastUsed)
	if err != nil {
		return false, err
	}
	defer parent.Release(context.WithoutCancel(ctx))
	return o.use(ctx, g, parent)
}

// mayBeLazy says whether a reference has a layer that may be lazy.
func (o *computedOp) mayBeLazy(ref cache.ImmutableRef) bool {
	layers := ref.LayerChain()
	defer layers.Release(context.Background())
	for _, layer := range layers {
		if h := ref.DescHandler(blobOf(layer)); h != nil {
			if _, err := o.layers.ID(h.SnapshotLabels); err == nil {
				return true
			}
		}
	}
	return false
}

// refOf returns the reference of a result, nil if it has no files.
func refOf(r solver.Result) cache.ImmutableRef {
	if ref, ok := r.Sys().(*bkworker.WorkerRef); ok {
		return ref.ImmutableRef
	}
	return nil
}

func refsOf(results []solver.Result) []cache.ImmutableRef {
	refs := make([]cache.ImmutableRef, len(results))
	for i, r := range results {
		refs[i] = refOf(r)
	}
	return refs
}

// blobOf returns the blob of a layer in BuildKit's metadata.
func blobOf(layer cache.ImmutableRef) digest.Digest {
	return digest.Digest(layer.GetString("cache.blob"))
}
