package worker

import (
	"context"
	"maps"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/snapshot"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/worker/base"
	"github.com/opencontainers/go-digest"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazy"
)

// keepLazy lets the records of lazy layers pass when BuildKit's cache starts.
//
// BuildKit takes a record for lazy whose blob is not here, and forgets it at the
// start, as nobody could tell where the blob is to be had. Until the returned
// function is called, the blobs of mounted layers count as here; afterwards,
// LoadRef can tell.
func keepLazy(wopt *base.WorkerOpt, layers *lazy.Layers) (started func()) {
	starting := &atomic.Bool{}
	starting.Store(true)
	inner := wopt.ContentStore.Store // for all namespaces
	wopt.ContentStore = containerdsnapshot.NewContentStore(
		&startingStore{Store: inner, layers: layers, starting: starting}, wopt.ContentStore.Namespace())
	wopt.Snapshotter = &startingSnapshotter{Snapshotter: wopt.Snapshotter, starting: starting}
	return func() { starting.Store(false) }
}

type startingStore struct {
	content.Store
	layers   *lazy.Layers
	starting *atomic.Bool
}

func (s *startingStore) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	info, err := s.Store.Info(ctx, d)
	if errdefs.IsNotFound(err) && s.starting.Load() {
		if _, ok := s.layers.Origin(d); ok {
			return content.Info{Digest: d}, nil
		}
	}
	return info, err
}

type startingSnapshotter struct {
	snapshot.Snapshotter
	starting *atomic.Bool
}

func (s *startingSnapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	info, err := s.Snapshotter.Stat(ctx, key)
	if err == nil && s.starting.Load() {
		info.Labels = maps.Clone(info.Labels)
		delete(info.Labels, remoteLabel)
	}
	return info, err
}
