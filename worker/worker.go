// Package worker builds the workers that the daemon runs builds on: BuildKit's
// own OCI and containerd workers, with our parts put in where BuildKit leaves
// room for them.
//
// It decides nothing about exporters or frontends: what decorates an exporter
// comes in through Options, from the daemon.
package worker

import (
	"context"
	"errors"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/llbsolver/cdidevices"
	"github.com/moby/buildkit/solver/llbsolver/linuxresources"
	"github.com/moby/buildkit/solver/llbsolver/ops"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/flightcontrol"
	bkworker "github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazy"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/record"
)

// Host is what all workers of one daemon have in common.
type Host struct {
	// Root is the daemon's state directory; every worker has its own below it.
	Root string
	// Version is what clients are told about the daemon.
	Version client.BuildkitVersion
	// Registries knows how to reach each registry.
	Registries docker.RegistryHosts
	// Sessions gives access to the clients' credentials.
	Sessions *session.Manager
	// DNS replaces the host's resolver settings in build containers; nil keeps them.
	DNS *config.DNSConfig
	// CDI offers devices to builds; nil when disabled.
	CDI *cdidevices.Manager
	// TraceSocket is the path of a socket that build containers may send
	// their traces to; empty for none.
	TraceSocket string
}

// alive says whether a session's client is still connected.
func (h *Host) alive(id string) bool {
	caller, err := h.Sessions.Get(context.Background(), id, true)
	return err == nil && caller != nil
}

// Options is what the daemon adds to BuildKit's workers.
type Options struct {
	// WrapExporter returns what stands in for e, which is what BuildKit would
	// use for name. Store is the worker's, where the layers to export are. Nil
	// leaves all exporters alone.
	WrapExporter func(name string, e exporter.Exporter, store content.Store) exporter.Exporter

	// Marks are those of the commands whose reads are recorded. Nil records none.
	Marks *record.Marks

	layers   *lazy.Layers                                         // nil without the lazy snapshotter
	show     func(ctx context.Context, snapshots ...string) error // of the lazy snapshotter
	recorder *record.Recorder
	host     Host
}

// decorated is BuildKit's worker with Options applied. The embedded worker is
// the concrete one, so that whatever else BuildKit asks it for by type
// assertion still answers. Its operations hand out results that name the inner
// worker: only what BuildKit asks of its worker.Controller reaches decorated.
type decorated struct {
	*base.Worker
	opt     Options
	pruning sync.Mutex // held while records are chosen and deleted
	walks   walks

	announced *announcedCache // nil without the lazy snapshotter

	conversions flightcontrol.Group[ocispecs.Descriptor]
	exports     overlaps // calls of GetRemotes
}

var _ bkworker.Worker = (*decorated)(nil)

func newWorker(ctx context.Context, wopt base.WorkerOpt, opt Options) (bkworker.Worker, error) {
	if opt.Marks != nil {
		opt.recorder = record.NewRecorder(wopt.Executor, opt.Marks)
	}
	wopt.Executor = opt.watched(wopt.Executor)
	var announces *announcing
	if opt.layers != nil {
		if err := forgetSessions(ctx, wopt.Snapshotter); err != nil {
			return nil, err
		}
		announces = &announcing{Snapshotter: wopt.Snapshotter, layers: opt.layers, show: opt.show, leases: wopt.LeaseManager}
		wopt.Snapshotter = announces
		defer keepLazy(&wopt, opt.layers)()
	}
	w, err := base.NewWorker(ctx, wopt)
	if err != nil {
		return nil, err
	}
	d := &decorated{Worker: w, opt: opt}
	if announces != nil {
		d.announced = &announcedCache{w.CacheMgr, announces, d.handlerIn}
		w.CacheMgr = d.announced
		w.SourceManager.Register(&announcedSource{w.ImageSource, d.announced})
		w.SourceManager.Register(&announcedSource{w.OCILayoutSource, d.announced})
	}
	return d, nil
}

// Exporter returns BuildKit's exporter, wrapped if so configured. What wraps it
// asks the references for layers, too, so that theirs are made below it.
func (d *decorated) Exporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	e, err := d.Worker.Exporter(name, sm)
	if err != nil {
		return nil, err
	}
	if d.opt.WrapExporter != nil {
		e = d.opt.WrapExporter(name, e, d.ContentStore())
	}
	if d.opt.layers != nil {
		e = d.exported(name, e)
	}
	return e, nil
}

// ResolveOp returns BuildKit's operation. Those that the daemon does itself, upon files,
// are watched if there are lazy layers to read. Commands that are marked
// get an executor of their own, which records. Provenance looks at the types of
// operations, so that a command stays BuildKit's.
func (d *decorated) ResolveOp(v solver.Vertex, s frontend.FrontendLLBBridge, sm *session.Manager, proxy bkworker.ProxyOpt) (solver.Op, error) {
	if op, ok := v.Sys().(*pb.Op); ok && op.GetExec() != nil {
		if d.opt.recorder != nil {
			if exec, by := d.opt.recorder.Resolve(op.GetExec()); exec != nil {
				return d.execOp(v, exec, op.Platform, d.opt.watched(by), sm, proxy)
			}
		}
		return d.execOp(v, op.GetExec(), op.Platform, d.WorkerOpt.Executor, sm, proxy)
	}
	op, err := d.Worker.ResolveOp(v, s, sm, proxy)
	is, ok := v.Sys().(*pb.Op)
	if err != nil || d.opt.layers == nil || !ok {
		return op, err
	}
	watched := watchedOp{Op: op, layers: d.opt.layers}
	switch {
	case is.GetFile() != nil:
		return &watched, nil
	case is.GetMerge() != nil, is.GetDiff() != nil:
		return &computedOp{watchedOp: watched, worker: d}, nil
	default:
		return op, nil
	}
}

// execOp is what BuildKit's worker does for a command, with an executor.
func (d *decorated) execOp(v solver.Vertex, exec *pb.ExecOp, platform *pb.Platform, by executor.Executor, sm *session.Manager, proxy bkworker.ProxyOpt) (solver.Op, error) {
	var resources *pb.LinuxResources
	if m, ok := v.Options().Metadata.(*linuxresources.Metadata); ok && m != nil {
		resources = m.LinuxResources
	}
	proxied := proxy.Network && exec.Network != pb.NetMode_NONE
	if proxied && proxy.Policy != nil {
		by = &proxiedExecutor{Executor: by, policy: proxy.Policy}
	}
	run := lastRun{handlers: d.handlerIn}
	return ops.NewExecOp(v, &pb.Op_Exec{Exec: exec}, platform, run.cache(d.CacheMgr), d.ParallelismSem, sm, run.executor(by), d.Worker, resources, proxied)
}

// Close closes the snapshotter as well, which BuildKit's worker leaves open: a
// lazy snapshotter has mounts that would outlive the process.
func (d *decorated) Close() error {
	return errors.Join(d.Worker.Close(), d.WorkerOpt.Snapshotter.Close())
}
