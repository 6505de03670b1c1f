package worker

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/util/bklog"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazy"
)

// An announcing snapshotter tells lazy layers of the builds that use them.
//
// BuildKit says so in labels: it adds the sessions of a build to a snapshot
// before it mounts it, and removes them afterwards, though the build reads for as
// long as it lives. They are told and not kept: what is on disk names nobody.
// This is done above containerd's metadata, which would keep them too, and would
// call what is below it within a transaction.
//
// It also sees to it that the lazy layers below a snapshot are mounted, or unpacked
// where they cannot be: before a snapshot is made upon them, and otherwise, if
// [announcedCache] has not done so, when one is mounted. BuildKit holds locks while it
// asks how to mount one, and none while it does so, but cannot cancel that.
type announcing struct {
	snapshot.Snapshotter
	layers *lazy.Layers
	show   func(ctx context.Context, snapshots ...string) error // of the lazy snapshotter
	leases leases.Manager
}

const (
	remoteLabel = "containerd.io/snapshot/remote"
	// targetLabel names a lazy snapshot below containerd's metadata.
	targetLabel = "containerd.io/snapshot.ref"
)

// Prepare lets the layer be fetched with the sessions in the labels.
func (a *announcing) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) error {
	var wanted snapshots.Info
	for _, opt := range opts {
		if err := opt(&wanted); err != nil {
			return err
		}
	}
	if wanted.Labels[targetLabel] == "" {
		below, err := a.lazyBelow(ctx, parent)
		if err != nil {
			return err
		}
		if err := a.show(ctx, below...); err != nil {
			return err
		}
	}
	kept := lazy.KeptLabels(wanted.Labels)
	if len(kept) == len(wanted.Labels) {
		return a.Snapshotter.Prepare(ctx, key, parent, opts...)
	}
	ctx = lazy.WithLabels(ctx, wanted.Labels)
	err := a.Snapshotter.Prepare(ctx, key, parent, append(slices.Clone(opts), withOnly(kept))...)
	if errdefs.IsAlreadyExists(err) { // the lazy snapshot does
		there, missing := a.Stat(ctx, wanted.Labels[targetLabel])
		if missing != nil {
			return missing
		}
		if refused := a.announce(ctx, there, wanted.Labels); refused != nil {
			return refused
		}
	}
	return err
}

// announce tells the layer of a lazy snapshot of the builds in the labels of a call.
func (a *announcing) announce(ctx context.Context, there snapshots.Info, call map[string]string) error {
	labels := map[string]string{}
	maps.Copy(labels, there.Labels)
	maps.Copy(labels, call)
	return a.layers.Announce(ctx, labels)
}

// withOnly replaces all labels.
func withOnly(labels map[string]string) snapshots.Opt {
	return func(info *snapshots.Info) error {
		info.Labels = labels
		return nil
	}
}

// Update announces the sessions in the labels. To remove them changes nothing.
func (a *announcing) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	kept := lazy.KeptLabels(info.Labels)
	if len(kept) == len(info.Labels) {
		return a.Snapshotter.Update(ctx, info, fieldpaths...)
	}
	there, err := a.Stat(ctx, info.Name)
	if err != nil {
		return there, err
	}
	if isLazy(there) && brings(info.Labels, kept) {
		if err := a.announce(ctx, there, info.Labels); err != nil {
			return there, err
		}
	}
	fields := slices.DeleteFunc(slices.Clone(fieldpaths), func(path string) bool {
		name, ok := strings.CutPrefix(path, "labels.")
		_, keep := kept[name]
		return ok && !keep
	})
	if len(fields) == 0 && len(fieldpaths) > 0 {
		return there, nil
	}
	info.Labels = kept
	return a.Snapshotter.Update(ctx, info, fields...)
}

// View shows the layers below a snapshot when it is mounted.
func (a *announcing) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) (snapshot.Mountable, error) {
	m, err := a.Snapshotter.View(ctx, key, parent, opts...)
	if err != nil {
		return nil, err
	}
	return a.showing(ctx, m, parent)
}

// Mounts shows the layers below a snapshot when it is mounted.
func (a *announcing) Mounts(ctx context.Context, key string) (snapshot.Mountable, error) {
	m, err := a.Snapshotter.Mounts(ctx, key)
	if err != nil {
		return nil, err
	}
	info, err := a.Stat(ctx, key)
	if err != nil {
		return nil, err
	}
	if m, err = a.showing(ctx, m, key); err != nil || info.Kind != snapshots.KindActive {
		return m, err
	}
	ctx = context.WithoutCancel(ctx)
	return &failingLater{Mountable: m, merging: func() bool { return !a.hasRecord(ctx, key) }}, nil
}

// hasRecord says whether BuildKit's cache has a record of a snapshot that is written,
// which a lease with its ID keeps. It has none of the snapshot that Merge writes.
func (a *announcing) hasRecord(ctx context.Context, key string) bool {
	_, err := a.leases.ListResources(ctx, leases.Lease{ID: key})
	return err == nil
}

func (a *announcing) showing(ctx context.Context, m snapshot.Mountable, name string) (snapshot.Mountable, error) {
	below, err := a.lazyBelow(ctx, name)
	if err != nil || len(below) == 0 {
		return m, err
	}
	// BuildKit keeps what it is given for other builds, which outlive this one.
	ctx = context.WithoutCancel(ctx)
	return &showing{Mountable: m, show: func() error { return a.show(ctx, below...) }}, nil
}

// lazyBelow returns the lazy snapshots below and including one, the lowest first.
func (a *announcing) lazyBelow(ctx context.Context, name string) ([]string, error) {
	var below []string
	for name != "" {
		info, err := a.Stat(ctx, name)
		if err != nil {
			return nil, err
		}
		if isLazy(info) {
			below = append(below, info.Labels[targetLabel])
		}
		name = info.Parent
	}
	slices.Reverse(below)
	return below, nil
}

func isLazy(info snapshots.Info) bool {
	_, ok := info.Labels[remoteLabel]
	return ok && info.Kind == snapshots.KindCommitted
}

// A showing Mountable is one upon lazy layers.
type showing struct {
	snapshot.Mountable
	show func() error
}

// Mount returns mounts of layers that are there.
func (m *showing) Mount() ([]mount.Mount, func() error, error) {
	if err := m.show(); err != nil {
		return nil, nil, err
	}
	return m.Mountable.Mount()
}

// A failingLater Mountable is that of a snapshot that BuildKit's Merge may be writing,
// which drops the error of Mount and panics. It then returns, instead of an error, a
// mount that nobody can make. Its type is that of no filesystem: the source of a bind
// mount would be used without being mounted. Only one caller may use it then.
type failingLater struct {
	snapshot.Mountable
	merging func() bool
	failed  []mount.Mount
}

// Mount returns no error to Merge. The kernel names the source, which is the reason, in
// its own. Merge mounts a second time, which fails as the first.
func (m *failingLater) Mount() ([]mount.Mount, func() error, error) {
	none := func() error { return nil }
	if m.failed != nil {
		return m.failed, none, nil
	}
	mounts, release, err := m.Mountable.Mount()
	if err == nil || !m.merging() {
		return mounts, release, err
	}
	bklog.L.WithError(err).Error("a merge is not mounted")
	m.failed = []mount.Mount{{Type: "unavailable", Source: err.Error()}}
	return m.failed, none, nil
}

// brings says whether any of the labels that are not kept is set.
func brings(labels, kept map[string]string) bool {
	for name, value := range labels {
		if _, ok := kept[name]; !ok && value != "" {
			return true
		}
	}
	return false
}

// forgetSessions removes the labels that an earlier version has kept.
func forgetSessions(ctx context.Context, s snapshot.Snapshotter) error {
	var stale []snapshots.Info
	err := s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if len(lazy.KeptLabels(info.Labels)) < len(info.Labels) {
			stale = append(stale, info)
		}
		return nil
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	for _, info := range stale {
		kept := lazy.KeptLabels(info.Labels)
		var fields []string
		for name := range info.Labels {
			if _, ok := kept[name]; !ok {
				fields = append(fields, "labels."+name)
			}
		}
		if _, err := s.Update(ctx, snapshots.Info{Name: info.Name, Labels: map[string]string{}}, fields...); err != nil {
			return fmt.Errorf("sessions in the labels of snapshot %s: %w", info.Name, err)
		}
	}
	return nil
}
