package worker

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/snapshot"
	"github.com/stretchr/testify/require"
)

// uponLazy has snapshots upon one that is lazy.
type uponLazy struct{ snapshot.Snapshotter }

func (uponLazy) Name() string { return "stargz" }

func (uponLazy) Stat(_ context.Context, name string) (snapshots.Info, error) {
	if name == "base" {
		return snapshots.Info{Name: name, Kind: snapshots.KindCommitted, Labels: map[string]string{remoteLabel: "", targetLabel: "lazy"}}, nil
	}
	return snapshots.Info{Name: name, Kind: snapshots.KindActive, Parent: "base"}, nil
}

func (uponLazy) Prepare(context.Context, string, string, ...snapshots.Opt) error { return nil }

func (uponLazy) Mounts(context.Context, string) (snapshot.Mountable, error) { return there{}, nil }

type there struct{ snapshot.Mountable }

func (there) Mount() ([]mount.Mount, func() error, error) {
	return []mount.Mount{{Type: "overlay"}}, func() error { return nil }, nil
}

// leasesOf has leases with these IDs.
type leasesOf struct {
	leases.Manager
	ids []string
}

func (l leasesOf) ListResources(_ context.Context, lease leases.Lease) ([]leases.Resource, error) {
	if slices.Contains(l.ids, lease.ID) {
		return nil, nil
	}
	return nil, errdefs.ErrNotFound
}

// A layer that is lost after a merge upon it was begun fails the merge, even if it is
// there again: the merge would take what is below its snapshot for what it has added.
func TestLostBelowMerge(t *testing.T) {
	why, shown := errors.New("it was lost"), 0
	show := func(context.Context, ...string) error {
		if shown++; shown == 2 {
			return why
		}
		return nil
	}
	a := &announcing{Snapshotter: uponLazy{}, show: show, leases: leasesOf{}}
	ctx := leases.WithLease(t.Context(), "lease")
	err := snapshot.NewMergeSnapshotter(ctx, a, nil).Merge(ctx, "merged", []snapshot.Diff{{Upper: "base"}})
	require.ErrorContains(t, err, why.Error())
	require.Equal(t, 2, shown)

	shown = 1
	m, err := a.Mounts(t.Context(), "active")
	require.NoError(t, err)
	mounts, release, err := m.Mount()
	require.NoError(t, err)
	require.ErrorContains(t, mount.All(mounts, t.TempDir()), why.Error())
	require.NoError(t, release())
}

// A layer that is lost below what a step writes is an error of mounting. If runc got
// the mount, its exit code would be taken for that of the step, which may allow it.
func TestLostBelowRecord(t *testing.T) {
	why := errors.New("it was lost")
	show := func(context.Context, ...string) error { return why }
	a := &announcing{Snapshotter: uponLazy{}, show: show, leases: leasesOf{ids: []string{"active"}}}
	m, err := a.Mounts(t.Context(), "active")
	require.NoError(t, err)
	_, _, err = m.Mount()
	require.ErrorIs(t, err, why)
}
