package worker

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/bklog"
	"github.com/opencontainers/go-digest"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/snapshot"
)

// BuildKit counts a blob once for each record that has it. It does not count what
// is here of a lazy layer, for which the record has neither a snapshot nor a blob
// that is here, nor what was built upon one, whose record it cannot load without a
// registry, nor layers in another order. A ledger counts everything once, for disk
// usage, for pruning and for the policy alike.

// DiskUsage says what records occupy. What several share is counted with the
// oldest of them.
func (d *decorated) DiskUsage(ctx context.Context, info client.DiskUsageInfo) ([]*client.UsageInfo, error) {
	all, ledger, err := d.usage(ctx)
	if err != nil {
		return nil, err
	}
	records := all
	if len(info.Filter) > 0 || info.AgeLimit > 0 {
		if records, err = d.Worker.DiskUsage(ctx, info); err != nil {
			return nil, err
		}
	}
	sizes := sizes(all, ledger)
	for _, record := range records {
		if n, ok := sizes[record.ID]; ok {
			record.Size = n
		}
	}
	return records, nil
}

// sizes are those of the records as they would be freed from the newest to the
// oldest, which leaves the ledger empty.
func sizes(records []*client.UsageInfo, ledger *ledger) map[string]int64 {
	newest := slices.SortedFunc(slices.Values(records), func(a, b *client.UsageInfo) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.ID, a.ID))
	})
	sizes := make(map[string]int64, len(records))
	for _, record := range newest {
		sizes[record.ID] = ledger.free(record.ID)
	}
	return sizes
}

// A ledger knows what records hold, and how large that is.
type ledger struct {
	held    map[string]map[string]int64 // sizes of things, by record and name
	holders map[string]int              // by name
}

func newLedger() *ledger {
	return &ledger{held: map[string]map[string]int64{}, holders: map[string]int{}}
}

// hold notes that a record has a thing.
func (l *ledger) hold(record, thing string, size int64) {
	if l.held[record] == nil {
		l.held[record] = map[string]int64{}
	}
	if _, ok := l.held[record][thing]; !ok {
		l.holders[thing]++
	}
	l.held[record][thing] = size
}

func (l *ledger) clone() *ledger {
	return &ledger{held: maps.Clone(l.held), holders: maps.Clone(l.holders)}
}

// free removes a record and returns the size of what nobody else holds.
func (l *ledger) free(record string) (freed int64) {
	for thing, size := range l.held[record] {
		if l.holders[thing]--; l.holders[thing] == 0 {
			freed += size
		}
	}
	delete(l.held, record)
	return freed
}

// usage returns all records as BuildKit has them, and the ledger of them.
func (d *decorated) usage(ctx context.Context) ([]*client.UsageInfo, *ledger, error) {
	records, err := d.Worker.DiskUsage(ctx, client.DiskUsageInfo{})
	if err != nil {
		return nil, nil, err
	}
	l := newLedger()
	for _, record := range records {
		r, err := d.recordOf(record.ID)
		if err != nil {
			return nil, nil, err
		}
		if err := d.enterBlobs(ctx, l, record.ID, r.blob); err != nil {
			return nil, nil, err
		}
		if err := d.enterSnapshot(ctx, l, record, r); err != nil {
			return nil, nil, err
		}
	}
	d.walks.keep(records)
	return records, l, nil
}

func (d *decorated) enterSnapshot(ctx context.Context, l *ledger, record *client.UsageInfo, r cacheRecord) error {
	if r.mutable != "" { // which has the data until a blob is made of it
		m, err := d.recordOf(r.mutable)
		if err != nil {
			return err
		}
		r.snapshot = m.snapshot
	}
	info, err := d.WorkerOpt.Snapshotter.Stat(ctx, r.snapshot)
	if errdefs.IsNotFound(err) || err == nil && record.Mutable && record.InUse { // and changing
		return nil
	} else if err != nil {
		return err
	}
	size, known := d.walks.find(record)
	if info.Kind == snapshots.KindCommitted || !known {
		usage, err := d.WorkerOpt.Snapshotter.Usage(ctx, r.snapshot)
		if err != nil {
			// A size that is unknown must not keep anything from being pruned.
			if !errdefs.IsNotFound(err) {
				bklog.G(ctx).WithError(err).Warnf("the size of snapshot %s is unknown and counts as 0", r.snapshot)
			}
			return nil
		}
		size = usage.Size
	}
	if info.Kind != snapshots.KindCommitted {
		d.walks.add(record, size)
	}
	l.hold(record.ID, d.nameOf(info), size)
	return nil
}

// walks remembers the sizes of snapshots that are not committed: each is a walk
// through a directory. It is good until the record is used again.
type walks struct {
	mu    sync.Mutex
	sizes map[walk]int64
}

type walk struct {
	record string
	used   time.Time
	count  int
}

func walkOf(r *client.UsageInfo) walk { return walk{r.ID, lastUse(r), r.UsageCount} }

func (w *walks) find(r *client.UsageInfo) (size int64, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	size, ok = w.sizes[walkOf(r)]
	return size, ok
}

func (w *walks) add(r *client.UsageInfo, size int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sizes == nil {
		w.sizes = map[walk]int64{}
	}
	w.sizes[walkOf(r)] = size
}

// keep forgets all but these records.
func (w *walks) keep(records []*client.UsageInfo) {
	there := map[walk]bool{}
	for _, r := range records {
		there[walkOf(r)] = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.sizes, func(at walk, _ int64) bool { return !there[at] })
}

// nameOf returns the same name for all snapshots that show one lazy layer. Each that
// is unpacked has files of its own.
func (d *decorated) nameOf(info snapshots.Info) string {
	_, remote := info.Labels[remoteLabel]
	_, unpacked := info.Labels[snapshot.UnpackedLabel]
	if remote && !unpacked && d.opt.layers != nil {
		if id, err := d.opt.layers.ID(info.Labels); err == nil {
			return "layer " + id
		}
	}
	return "snapshot " + info.Name
}

// enterBlobs enters a blob and those that it refers to: the same layer in other
// compressions, and in other orders.
func (d *decorated) enterBlobs(ctx context.Context, l *ledger, record string, blob digest.Digest) error {
	if blob == "" {
		return nil
	}
	seen := map[digest.Digest]bool{blob: true}
	for todo := []digest.Digest{blob}; len(todo) > 0; todo = todo[1:] {
		info, err := d.ContentStore().Info(ctx, todo[0])
		if errdefs.IsNotFound(err) {
			continue
		} else if err != nil {
			return err
		}
		l.hold(record, "blob "+info.Digest.String(), info.Size)
		for label, value := range info.Labels {
			another := digest.Digest(value)
			if strings.HasPrefix(label, "containerd.io/gc.ref.content") && !seen[another] && another.Validate() == nil {
				seen[another] = true
				todo = append(todo, another)
			}
		}
	}
	return nil
}

// A cacheRecord is what BuildKit keeps of a record.
type cacheRecord struct {
	snapshot string
	mutable  string // the record that shares its snapshot
	blob     digest.Digest
}

func (d *decorated) recordOf(id string) (r cacheRecord, err error) {
	item, ok := d.MetadataStore.Get(id)
	if !ok {
		return r, nil
	}
	for key, to := range map[string]any{"cache.snapshot": &r.snapshot, "cache.equalMutable": &r.mutable, "cache.blob": &r.blob} {
		if value := item.Get(key); value != nil {
			if err := value.Unmarshal(to); err != nil {
				return r, err
			}
		}
	}
	return r, nil
}
