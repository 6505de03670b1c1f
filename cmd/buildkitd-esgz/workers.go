package main

import (
	"context"
	"errors"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/archutil"
	"github.com/moby/buildkit/util/bklog"
	bkworker "github.com/moby/buildkit/worker"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker"
)

// kind is one of the two ways to run build steps.
type kind struct {
	name string
	// enabled is nil for "if it can work here".
	enabled   *bool
	available func() error
	start     func() (bkworker.Worker, error)
}

// newWorkers starts all configured workers. The first one is the default, and
// BuildKit uses no other so far.
func newWorkers(ctx context.Context, cfg config.Config, host worker.Host, opt worker.Options) (*bkworker.Controller, error) {
	kinds := []kind{{
		name:      "oci",
		enabled:   cfg.Workers.OCI.Enabled,
		available: func() error { return worker.OCIAvailable(cfg.Workers.OCI) },
		start: func() (bkworker.Worker, error) {
			return worker.NewOCI(ctx, cfg.Workers.OCI, host, opt)
		},
	}, {
		name:      "containerd",
		enabled:   cfg.Workers.Containerd.Enabled,
		available: func() error { return worker.ContainerdAvailable(ctx, cfg.Workers.Containerd) },
		start: func() (bkworker.Worker, error) {
			return worker.NewContainerd(ctx, cfg.Workers.Containerd, host, opt)
		},
	}}
	workers := &bkworker.Controller{}
	for _, k := range kinds {
		if !k.wanted() {
			continue
		}
		w, err := k.start()
		if err != nil {
			return nil, errors.Join(err, workers.Close())
		}
		announce(w)
		if err := workers.Add(w); err != nil {
			return nil, errors.Join(err, w.Close(), workers.Close())
		}
	}
	preferred, err := workers.GetDefault()
	if err != nil {
		return nil, errors.New("no worker: install runc or start containerd, or name what is there with --oci-worker-binary or --containerd-worker-addr")
	}
	bklog.L.Infof("found %d workers, default=%q", len(workers.WorkerInfos()), preferred.ID())
	return workers, nil
}

func (k kind) wanted() bool {
	if k.enabled != nil {
		return *k.enabled
	}
	if err := k.available(); err != nil {
		bklog.L.Warnf("skipping %s worker: %v", k.name, err)
		return false
	}
	return true
}

func announce(w bkworker.Worker) {
	supported := w.Platforms(false)
	names := make([]string, len(supported))
	for i, p := range supported {
		names[i] = platforms.Format(platforms.Normalize(p))
	}
	bklog.L.Infof("found worker %q, labels=%v, platforms=%v", w.ID(), w.Labels(), names)
	archutil.WarnIfUnsupported(supported)
}
