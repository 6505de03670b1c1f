package worker

import (
	"context"
	"errors"
	"slices"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	bkworker "github.com/moby/buildkit/worker"
	"github.com/opencontainers/go-digest"
)

// A computedOp is BuildKit's operation for a merge or a diff.
//
// BuildKit computes the files of a diff when they are needed, of two references that
// are no layers of it. If some of them may be lazy, the files are computed at once, for
// which the build that makes the diff has to show that it may read them: who finds the
// diff in the cache later need not show it, as with the result of a command.
type computedOp struct {
	watchedOp
	worker *decorated
}

// What BuildKit's metadata has of a reference.
const (
	snapshotKey = "cache.snapshot"
	blobKey     = "cache.blob"
	parentKey   = "cache.parent"
	mergeKey    = "cache.mergeParents"
	lowerKey    = "cache.lowerDiffParent"
	upperKey    = "cache.upperDiffParent"
)

func (o *computedOp) Exec(ctx context.Context, job solver.JobContext, inputs []solver.Result) ([]solver.Result, error) {
	end := o.layers.Watch(ctx, usedBy(refsOf(inputs)...), job.Session())
	outputs, err := o.exec(ctx, job, inputs)
	return outputs, end(err)
}

func (o *computedOp) exec(ctx context.Context, job solver.JobContext, inputs []solver.Result) (outputs []solver.Result, err error) {
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

// compute computes the files of a reference if there are diffs of lazy layers in it.
func (o *computedOp) compute(ctx context.Context, g session.Group, ref cache.ImmutableRef) error {
	if ref == nil {
		return nil
	}
	layers := ref.LayerChain()
	defer layers.Release(context.WithoutCancel(ctx))
	for _, layer := range layers {
		for _, id := range diffOf(layer) {
			lazy, err := o.mayBeLazy(ctx, ref, id)
			if err != nil {
				return err
			}
			if lazy {
				return ref.Extract(ctx, g)
			}
		}
	}
	return nil
}

// mayBeLazy says whether a part of a reference has a layer that may be lazy.
func (o *computedOp) mayBeLazy(ctx context.Context, of cache.Ref, id string) (bool, error) {
	part, err := o.worker.announced.part(ctx, of, id)
	if err != nil {
		return false, err
	}
	defer part.Release(context.WithoutCancel(ctx))
	layers := part.LayerChain()
	defer layers.Release(context.WithoutCancel(ctx))
	return slices.ContainsFunc(layers, func(layer cache.ImmutableRef) bool {
		h := part.DescHandler(blobOf(layer))
		if h == nil {
			return false
		}
		_, err := o.layers.ID(h.SnapshotLabels)
		return err == nil
	}), nil
}

// isComputed says whether a reference is a merge or a diff.
func isComputed(ref cache.ImmutableRef) bool {
	return ref.Get(mergeKey) != nil || len(diffOf(ref)) > 0
}

// partsOf returns the references that BuildKit reads to make the files of a layer in a
// merge, or the blob of the layer.
func partsOf(layer cache.ImmutableRef) []string {
	if diff := diffOf(layer); len(diff) > 0 {
		return diff
	}
	return []string{layer.ID()}
}

// diffOf returns the references that a diff is computed of, none for another layer.
func diffOf(layer cache.ImmutableRef) (ids []string) {
	for _, key := range []string{lowerKey, upperKey} {
		if id := layer.GetString(key); id != "" {
			ids = append(ids, id)
		}
	}
	return ids
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

// blobOf returns the blob of a layer.
func blobOf(layer cache.ImmutableRef) digest.Digest {
	return digest.Digest(layer.GetString(blobKey))
}
