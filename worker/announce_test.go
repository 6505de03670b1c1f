package worker

import (
	"context"
	"errors"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
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

// A layer that is lost after a merge upon it was begun fails the merge.
func TestLostBelowMerge(t *testing.T) {
	why, shown := errors.New("it was lost"), 0
	show := func(context.Context, ...string) error {
		if shown++; shown == 1 {
			return nil
		}
		return why
	}
	a := &announcing{Snapshotter: uponLazy{}, show: show}
	ctx := leases.WithLease(t.Context(), "lease")
	err := snapshot.NewMergeSnapshotter(ctx, a, nil).Merge(ctx, "merged", []snapshot.Diff{{Upper: "base"}})
	require.ErrorContains(t, err, why.Error())

	m, err := a.Mounts(t.Context(), "active")
	require.NoError(t, err)
	_, err = snapshot.LocalMounter(m).Mount() // which would only name the source of a bind mount
	require.ErrorContains(t, err, why.Error())
	mounts, release, err := m.Mount()
	require.NoError(t, err)
	require.ErrorContains(t, mount.All(mounts, t.TempDir()), why.Error())
	require.NoError(t, release())
}
