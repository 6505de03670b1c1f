package worker

import (
	"context"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/session"
	"github.com/opencontainers/go-digest"
)

// A lastRun keeps a command that was canceled from leaving what it wrote in use.
//
// BuildKit's operation returns the results of a command together with its error,
// and the solver drops both when nobody wants them any more: nobody releases the
// results, which cannot be pruned until the daemon ends. Those of a canceled command
// are not committed here, and the operation releases them itself.
//
// It also tells the executor the sessions, and the cache the handlers of lazy layers.
type lastRun struct {
	canceled error
	// sessions are those of the builds that share the command. BuildKit's operation
	// passes them to the cache, but not to the executor.
	sessions session.Group
	// handlers are those of the lazy layers that a cache mount may be upon.
	handlers func(ctx context.Context) func(blob digest.Digest) *cache.DescHandler
}

type sessionsKey struct{}

// sessionsOf are those of the builds that share the command which an executor runs
// in this context. They change as builds join it and end.
func sessionsOf(ctx context.Context) session.Group {
	g, _ := ctx.Value(sessionsKey{}).(session.Group)
	return g
}

// executor returns e, which tells how its last process ended.
func (l *lastRun) executor(e executor.Executor) executor.Executor { return &lastRunExecutor{e, l} }

// cache returns m, which commits no results of a canceled process.
func (l *lastRun) cache(m cache.Manager) cache.Manager { return &lastRunCache{m, l} }

type lastRunExecutor struct {
	executor.Executor
	run *lastRun
}

func (e *lastRunExecutor) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (types.Recorder, error) {
	e.run.canceled = nil
	ctx = context.WithValue(ctx, sessionsKey{}, e.run.sessions)
	recorder, err := e.Executor.Run(ctx, id, root, mounts, process, started)
	if ctx.Err() != nil {
		e.run.canceled = err
	}
	return recorder, err
}

type lastRunCache struct {
	cache.Manager
	run *lastRun
}

func (c *lastRunCache) New(ctx context.Context, parent cache.ImmutableRef, s session.Group, opts ...cache.RefOption) (cache.MutableRef, error) {
	c.run.sessions = s
	ref, err := c.Manager.New(ctx, parent, s, opts...)
	if err != nil {
		return nil, err
	}
	return &lastRunRef{ref, c.run}, nil
}

// GetMutable gets a cache mount of an earlier command. BuildKit's operation gives no
// handlers, and makes another one if some are needed.
func (c *lastRunCache) GetMutable(ctx context.Context, id string, opts ...cache.RefOption) (cache.MutableRef, error) {
	get := func(handlers cache.DescHandlers) (cache.MutableRef, error) {
		return c.Manager.GetMutable(ctx, id, append(opts[:len(opts):len(opts)], handlers)...)
	}
	return withHandlers(get, c.run.handlers(ctx))
}

type lastRunRef struct {
	cache.MutableRef
	run *lastRun
}

func (r *lastRunRef) Commit(ctx context.Context) (cache.ImmutableRef, error) {
	if r.run.canceled != nil {
		return nil, r.run.canceled
	}
	return r.MutableRef.Commit(ctx)
}
