package worker

import (
	"context"

	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazy"
)

// watchedExecutor shows the lazy layers that a process reads in the progress of
// its vertex, and why it could not read them in its error.
type watchedExecutor struct {
	executor.Executor
	layers *lazy.Layers
}

func (e *watchedExecutor) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (types.Recorder, error) {
	end := e.layers.Watch(ctx)
	recorder, err := e.Executor.Run(ctx, id, root, mounts, process, started)
	return recorder, end(err)
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
	end := o.layers.Watch(ctx)
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
				end := o.layers.Watch(ctx)
				d, err := sum(ctx, r, g)
				return d, end(err)
			}
		}
	}
	return m, done, nil
}

func isFileOp(v solver.Vertex) bool {
	op, ok := v.Sys().(*pb.Op)
	return ok && op.GetFile() != nil
}
