package worker

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/bklog"
	"github.com/opencontainers/go-digest"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazy"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/record"
)

// watchedExecutor shows the lazy layers that a process reads in the progress of
// its vertex, and why it could not read them in its error.
type watchedExecutor struct {
	executor.Executor
	layers *lazy.Layers
}

func (e *watchedExecutor) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (types.Recorder, error) {
	u := &used{layers: e.layers, blobs: map[digest.Digest]bool{}}
	root = u.watch(root)
	mounts = slices.Clone(mounts)
	for i, m := range mounts {
		mounts[i] = u.watch(m)
	}
	end := e.layers.Watch(ctx, u.has, sessionsOf(ctx))
	recorder, err := e.Executor.Run(ctx, id, root, mounts, process, started)
	return recorder, end(err)
}

// used are the blobs of the lazy layers that an executor has mounted. It is safe
// for concurrent use.
type used struct {
	layers *lazy.Layers

	mu    sync.Mutex
	blobs map[digest.Digest]bool
}

func (u *used) has(blob digest.Digest) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.blobs[blob]
}

func (u *used) add(m mount.Mount) {
	dirs, err := record.LayersOf(m)
	if err != nil {
		bklog.L.WithError(err).Debugf("which lazy layers are mounted from %s is not known", m.Source)
	}
	for _, dir := range dirs {
		if blob, ok := u.layers.At(dir); ok {
			u.mu.Lock()
			u.blobs[blob] = true
			u.mu.Unlock()
		}
	}
}

func (u *used) watch(m executor.Mount) executor.Mount {
	if m.Src != nil {
		m.Src = &watchedMountable{m.Src, u}
	}
	return m
}

// A watchedMountable tells what is mounted. An executor is not told which snapshots
// its mounts are of, so that their options have to say it.
type watchedMountable struct {
	executor.Mountable
	used *used
}

func (m *watchedMountable) Mount(ctx context.Context, readonly bool) (executor.MountableRef, error) {
	ref, err := m.Mountable.Mount(ctx, readonly)
	if err != nil {
		return nil, err
	}
	return &watchedRef{ref, m.used}, nil
}

type watchedRef struct {
	executor.MountableRef
	used *used
}

func (r *watchedRef) Mount() ([]mount.Mount, func() error, error) {
	mounts, release, err := r.MountableRef.Mount()
	for _, m := range mounts {
		r.used.add(m)
	}
	return mounts, release, err
}

// watched returns e, watched if there are lazy layers to read.
func (o Options) watched(e executor.Executor) executor.Executor {
	if o.layers == nil {
		return e
	}
	return &watchedExecutor{Executor: e, layers: o.layers}
}

// watchedOp does so for what the daemon itself reads.
type watchedOp struct {
	solver.Op
	layers *lazy.Layers
}

func (o *watchedOp) Exec(ctx context.Context, job solver.JobContext, inputs []solver.Result) ([]solver.Result, error) {
	end := o.layers.Watch(ctx, usedBy(refsOf(inputs)...), job.Session())
	outputs, err := o.Op.Exec(ctx, job, inputs)
	return outputs, end(err)
}

// CacheMap watches the contents being summed up, too.
func (o *watchedOp) CacheMap(ctx context.Context, job solver.JobContext, index int) (*solver.CacheMap, bool, error) {
	m, done, err := o.Op.CacheMap(ctx, job, index)
	if err != nil || m == nil {
		return m, done, err
	}
	for i, dep := range m.Deps {
		if sum := dep.ComputeDigestFunc; sum != nil {
			m.Deps[i].ComputeDigestFunc = func(ctx context.Context, r solver.Result, g session.Group) (digest.Digest, error) {
				end := o.layers.Watch(ctx, usedBy(refOf(r)), g)
				d, err := sum(ctx, r, g)
				return d, end(err)
			}
		}
	}
	return m, done, nil
}

// usedBy tells the blobs of the layers of references, which may be nil. A lazy one has a
// handler, by which BuildKit could pull it.
func usedBy(refs ...cache.ImmutableRef) func(digest.Digest) bool {
	return func(blob digest.Digest) bool {
		return slices.ContainsFunc(refs, func(ref cache.ImmutableRef) bool { return ref != nil && ref.DescHandler(blob) != nil })
	}
}

// A watchedExporter exports files, which the daemon reads.
type watchedExporter struct {
	exporter.Exporter
	layers *lazy.Layers
}

func (e *watchedExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	i, err := e.Exporter.Resolve(ctx, id, attrs)
	if err != nil {
		return nil, err
	}
	return &watchedExport{i, e.layers}, nil
}

type watchedExport struct {
	exporter.ExporterInstance
	layers *lazy.Layers
}

func (i *watchedExport) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	refs := append(slices.Collect(maps.Values(src.Refs)), src.Ref)
	end := i.layers.Watch(ctx, usedBy(refs...), session.NewGroup(info.SessionID))
	response, finalize, ref, err := i.ExporterInstance.Export(ctx, src, info)
	return response, finalize, ref, end(err)
}

// Explain adds to the error of a build that began at a time why the lazy layers of a
// step's input could not be read, if no checksum could be made of the input. That of a
// command is not watched: the operation has to be BuildKit's, see ResolveOp.
func Explain(err error, began time.Time) error {
	var slow *solver.SlowCacheError
	if !errors.As(err, &slow) {
		return err
	}
	ref, ok := refOf(slow.Result).(*announcedRef)
	if !ok {
		return err
	}
	return ref.cache.snapshots.layers.Explain(err, began, usedBy(ref))
}
