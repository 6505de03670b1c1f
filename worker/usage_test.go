package worker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/snapshot"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/worker/base"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// A fakeCache has records and deletes those that it is told to by their IDs.
type fakeCache struct {
	cache.Manager
	records []*client.UsageInfo
}

func (c *fakeCache) DiskUsage(context.Context, client.DiskUsageInfo) ([]*client.UsageInfo, error) {
	var all []*client.UsageInfo
	for _, record := range c.records {
		r := *record
		all = append(all, &r)
	}
	return all, nil
}

func (c *fakeCache) Prune(_ context.Context, ch chan client.UsageInfo, rules ...client.PruneInfo) error {
	for _, rule := range rules {
		if len(rule.Filter) == 0 {
			return fmt.Errorf("everything would go by %v", rule)
		}
		c.records = slices.DeleteFunc(c.records, func(r *client.UsageInfo) bool {
			if !slices.Contains(rule.Filter, "id=="+r.ID) {
				return false
			}
			if ch != nil {
				ch <- *r
			}
			return true
		})
	}
	return nil
}

func (c *fakeCache) ids() string {
	var ids []string
	for _, record := range c.records {
		ids = append(ids, record.ID)
	}
	return strings.Join(ids, " ")
}

// fakeSnapshots are committed snapshots with their sizes.
type fakeSnapshots struct {
	snapshot.Snapshotter
	sizes  map[string]int64
	walks  *int   // of active ones
	broken string // one whose size cannot be had
}

func (s fakeSnapshots) Stat(_ context.Context, key string) (snapshots.Info, error) {
	if _, ok := s.sizes[key]; !ok {
		return snapshots.Info{}, errdefs.ErrNotFound
	}
	info := snapshots.Info{Name: key, Kind: snapshots.KindCommitted}
	if strings.HasPrefix(key, "active") {
		info.Kind = snapshots.KindActive
	}
	return info, nil
}

func (s fakeSnapshots) Usage(_ context.Context, key string) (snapshots.Usage, error) {
	if strings.HasPrefix(key, "active") {
		*s.walks++
	}
	if key == s.broken {
		return snapshots.Usage{}, errors.New("the index is of another version")
	}
	return snapshots.Usage{Size: s.sizes[key]}, nil
}

type fakeContent struct {
	content.Store
	infos map[digest.Digest]content.Info
}

func (s fakeContent) Info(_ context.Context, d digest.Digest) (content.Info, error) {
	info, ok := s.infos[d]
	if !ok {
		return info, errdefs.ErrNotFound
	}
	return info, nil
}

// cacheOf has four records: two upon one lazy layer of 600 bytes, of which the
// newer one has an upper layer of 100 with a blob of 50, which refers to one of
// 40 in another order, and an unrelated one with the same blob.
func cacheOf(t *testing.T) (*decorated, *fakeCache) {
	blob, ordered := digest.FromString("blob"), digest.FromString("ordered")
	store, err := metadata.NewStore(filepath.Join(t.TempDir(), "records"))
	require.NoError(t, err)
	t.Cleanup(func() { store.Close() })
	for id, values := range map[string]map[string]any{
		"lazy":  {"cache.snapshot": "base", "cache.blob": digest.FromString("not here")},
		"again": {"cache.snapshot": "base"},
		"upper": {"cache.snapshot": "upper", "cache.blob": blob},
		"other": {"cache.snapshot": "to be committed", "cache.equalMutable": "run", "cache.blob": blob},
		"run":   {"cache.snapshot": "active"},
	} {
		item, _ := store.Get(id)
		require.NoError(t, item.Update(func(b *bolt.Bucket) error {
			for key, value := range values {
				v, err := metadata.NewValue(value)
				if err != nil {
					return err
				}
				if err := item.SetValue(b, key, v); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	at := func(n int) *time.Time { used := time.Unix(int64(n), 0); return &used }
	cm := &fakeCache{records: []*client.UsageInfo{
		{ID: "lazy", CreatedAt: *at(1), LastUsedAt: at(1)},
		{ID: "again", CreatedAt: *at(2), LastUsedAt: at(4)},
		{ID: "upper", CreatedAt: *at(3), LastUsedAt: at(2), Parents: []string{"lazy"}},
		{ID: "other", CreatedAt: *at(4), LastUsedAt: at(3)},
	}}
	d := &decorated{Worker: &base.Worker{CacheMgr: cm, WorkerOpt: base.WorkerOpt{
		Root: t.TempDir(), MetadataStore: store,
		Snapshotter: fakeSnapshots{sizes: map[string]int64{"base": 600, "upper": 100, "active": 20}, walks: new(int)},
		ContentStore: containerdsnapshot.NewContentStore(fakeContent{infos: map[digest.Digest]content.Info{
			blob: {Digest: blob, Size: 50, Labels: map[string]string{
				"containerd.io/gc.ref.content.buildkitd-esgz.ordered-1": ordered.String(),
			}},
			ordered: {Digest: ordered, Size: 40},
		}}, "buildkit"),
	}}}
	return d, cm
}

// Everything is counted once, with the oldest record that has it.
func TestDiskUsage(t *testing.T) {
	d, cm := cacheOf(t)
	records, err := d.DiskUsage(t.Context(), client.DiskUsageInfo{})
	require.NoError(t, err)
	got := map[string]int64{}
	for _, record := range records {
		got[record.ID] = record.Size
	}
	require.Equal(t, map[string]int64{"lazy": 600, "again": 0, "upper": 190, "other": 20}, got)
	require.Equal(t, 2, walkedAfter(t, d, cm))
}

// walkedAfter says how often an active snapshot was walked through, after it was
// asked for twice more and used once.
func walkedAfter(t *testing.T, d *decorated, cm *fakeCache) int {
	for range 2 {
		_, err := d.DiskUsage(t.Context(), client.DiskUsageInfo{})
		require.NoError(t, err)
		cm.records[3].UsageCount = 7
	}
	return *d.WorkerOpt.Snapshotter.(fakeSnapshots).walks
}

// A layer whose index cannot be read keeps nothing from being told or pruned.
func TestUsageUnknown(t *testing.T) {
	for _, rule := range []client.PruneInfo{{MaxUsedSpace: 1}, {All: true, Filter: []string{"id==lazy", "id==again", "id==upper", "id==other"}}} {
		d, cm := cacheOf(t)
		broken := d.WorkerOpt.Snapshotter.(fakeSnapshots)
		broken.broken = "base"
		d.WorkerOpt.Snapshotter = broken
		records, err := d.DiskUsage(t.Context(), client.DiskUsageInfo{})
		require.NoError(t, err)
		require.Len(t, records, 4)
		require.NoError(t, d.Prune(t.Context(), nil, rule))
		require.NotContains(t, cm.ids(), "upper")
	}
}

func TestByID(t *testing.T) {
	var ids []string
	for i := range 25 {
		ids = append(ids, fmt.Sprint(i))
	}
	var named []string
	for _, rule := range byID(ids) {
		require.True(t, rule.All)
		require.False(t, hasLimits(rule))
		require.LessOrEqual(t, len(rule.Filter), 10, "BuildKit compares each of them with each record")
		for _, filter := range rule.Filter {
			named = append(named, strings.TrimPrefix(filter, "id=="))
		}
	}
	require.Equal(t, ids, named)
}

// The worker hands out the slice that holds its policy.
func TestPolicyStays(t *testing.T) {
	d, cm := cacheOf(t)
	policy := []client.PruneInfo{{MaxUsedSpace: 1000, ReservedSpace: 500, MinFreeSpace: 1}, {All: true, MaxUsedSpace: 820, ReservedSpace: 100}}
	before := slices.Clone(policy)
	for range 100 {
		require.NoError(t, d.Prune(t.Context(), nil, policy...))
	}
	require.Equal(t, before, policy)
	require.Equal(t, "lazy again upper other", cm.ids())
}

// Records go until what is left is within the limits, and no further: what
// another record has as well frees nothing.
func TestPruneToLimit(t *testing.T) {
	for limit, want := range map[int64]string{
		810: "lazy again upper other",
		809: "lazy again other",
		710: "lazy again other",
		709: "again",
		600: "again",
		599: "",
	} {
		d, cm := cacheOf(t)
		ch := make(chan client.UsageInfo, 10)
		require.NoError(t, d.Prune(t.Context(), ch, client.PruneInfo{MaxUsedSpace: limit}))
		close(ch)
		require.Equal(t, want, cm.ids(), "limit %d", limit)
		var freed, left int64
		for record := range ch {
			freed += record.Size
		}
		records, err := d.DiskUsage(t.Context(), client.DiskUsageInfo{})
		require.NoError(t, err)
		for _, record := range records {
			left += record.Size
		}
		require.EqualValues(t, 810, freed+left, "limit %d", limit)
		require.LessOrEqual(t, left, limit)
	}
}

func TestKeep(t *testing.T) {
	for _, c := range []struct {
		rule              client.PruneInfo
		total, free, want int64
	}{
		{client.PruneInfo{MaxUsedSpace: 50}, 100, 0, 50},
		{client.PruneInfo{MaxUsedSpace: 50, ReservedSpace: 60}, 100, 0, 60},
		{client.PruneInfo{ReservedSpace: 30}, 100, 0, 30},
		{client.PruneInfo{MinFreeSpace: 10}, 100, 10, 100},
		{client.PruneInfo{MinFreeSpace: 30}, 100, 10, 80},
		{client.PruneInfo{MinFreeSpace: 300}, 100, 10, 0},
		{client.PruneInfo{MinFreeSpace: 300, ReservedSpace: 20}, 100, 10, 20},
		{client.PruneInfo{MaxUsedSpace: 90, MinFreeSpace: 30}, 100, 10, 80},
	} {
		require.Equal(t, c.want, keep(c.rule, c.total, c.free), "%+v", c)
	}
}

// Parents go after their children, and what was used least goes first.
func TestChooseFrom(t *testing.T) {
	l := newLedger()
	at := func(n int) *time.Time { used := time.Unix(int64(n), 0); return &used }
	records := []*client.UsageInfo{
		{ID: "parent", LastUsedAt: at(1), UsageCount: 1},
		{ID: "child", LastUsedAt: at(2), UsageCount: 2, Parents: []string{"parent"}},
		{ID: "often", LastUsedAt: at(2), UsageCount: 9},
		{ID: "never"},
	}
	for _, r := range records {
		l.hold(r.ID, r.ID, 10)
	}
	require.Equal(t, []string{"never", "child", "parent"}, chooseFrom(records, children(records), l.clone(), 30))
	require.Equal(t, []string{"never"}, chooseFrom(records, children(records), l, 1))
}
