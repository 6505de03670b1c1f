package worker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/resolver"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazy"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/snapshot"
)

// stargz opens the lazy snapshotter, which reads layers with the credentials of
// the sessions that asked for them.
type stargz struct {
	config lazy.Config
	limits lazy.Limits
	host   Host
	// once it is open
	layers *lazy.Layers
	show   func(ctx context.Context, snapshots ...string) error
}

func newStargz(cfg config.OCIConfig, host Host) (*stargz, error) {
	section, ignored, err := lazy.ParseConfig(cfg.StargzSnapshotterConfig)
	if err != nil {
		return nil, fmt.Errorf("worker.oci.stargzSnapshotter: %w", err)
	}
	if len(ignored) > 0 {
		bklog.L.Warnf("worker.oci.stargzSnapshotter: ignoring keys that mean nothing to this snapshotter: %s", strings.Join(ignored, ", "))
	}
	return &stargz{config: section, limits: limits(gcPolicy(cfg.GCConfig, host.Root)), host: host}, nil
}

// limits are those of a policy of garbage collection: it would free at once what
// goes beyond.
func limits(policy []client.PruneInfo) (l lazy.Limits) {
	for _, rule := range policy {
		l.MinFree = max(l.MinFree, rule.MinFreeSpace)
		if len(rule.Filter) > 0 {
			continue
		}
		l.MaxUsed = max(l.MaxUsed, rule.MaxUsedSpace)
		if rule.MaxUsedSpace == 0 && rule.MinFreeSpace == 0 {
			l.MaxUsed = max(l.MaxUsed, rule.ReservedSpace) // it prunes down to that
		}
	}
	return l
}

// open opens the snapshots in a directory of the worker's.
func (s *stargz) open(dir string) (snapshots.Snapshotter, error) {
	layers, err := lazy.New(dir, lazy.Options{Hosts: s.hosts, Alive: s.host.alive, UserXattr: userXattr(dir), Limits: s.limits, Config: s.config})
	if err != nil {
		return nil, err
	}
	snapshotter, err := snapshot.New(context.Background(), filepath.Join(dir, "snapshotter"), layers)
	if err != nil {
		return nil, errors.Join(err, layers.Close())
	}
	s.layers, s.show = layers, snapshotter.Show
	if err := prometheus.Register(layers); err != nil {
		bklog.L.WithError(err).Warn("no metrics of lazy layers")
	}
	return lazySnapshotter{Snapshotter: snapshotter, layers: layers}, nil
}

// A lazySnapshotter closes its layers too.
type lazySnapshotter struct {
	*snapshot.Snapshotter
	layers *lazy.Layers
}

func (s lazySnapshotter) Close() error {
	prometheus.Unregister(s.layers)
	return errors.Join(s.Snapshotter.Close(), s.layers.Close())
}

// userXattr says how opaque directories must look to the overlay filesystem
// that is mounted on top of the layers below a directory.
func userXattr(dir string) bool {
	user, err := overlayutils.NeedsUserXAttr(dir)
	if err != nil {
		bklog.L.WithError(err).Warnf("does overlayfs need userxattr? assuming %v", user)
	}
	return user
}

// hosts resolves with the daemon's registry configuration and the credentials
// of a session.
func (s *stargz) hosts(ref reference.Spec, id string) ([]docker.RegistryHost, error) {
	var sessions []string
	if id != "" {
		sessions = append(sessions, id)
	}
	return resolver.DefaultPool.
		GetResolver(s.host.Registries, ref.String(), resolver.ScopeType{}, s.host.Sessions, session.NewGroup(sessions...)).
		HostsFunc(ref.Hostname())
}
