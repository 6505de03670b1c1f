package worker

import (
	"context"
	"slices"

	"github.com/moby/buildkit/client"
)

// What is here of a lazy layer BuildKit does not count: for it the record has
// no snapshot, only a blob, and that is not here.

// DiskUsage counts lazy layers with the bytes that are here.
func (d *decorated) DiskUsage(ctx context.Context, info client.DiskUsageInfo) ([]*client.UsageInfo, error) {
	records, err := d.Worker.DiskUsage(ctx, info)
	if err != nil || d.opt.layers == nil {
		return records, err
	}
	for _, record := range records {
		n, err := d.lazySize(ctx, record.ID)
		if err != nil {
			return nil, err
		}
		record.Size += n
	}
	return records, nil
}

// lazySize is zero for records that are not lazy.
func (d *decorated) lazySize(ctx context.Context, id string) (int64, error) {
	item, ok := d.MetadataStore.Get(id)
	if !ok {
		return 0, nil
	}
	var blobOnly bool
	var snapshot string
	for key, to := range map[string]any{"cache.blobonly": &blobOnly, "cache.snapshot": &snapshot} {
		value := item.Get(key)
		if value == nil {
			return 0, nil
		}
		if err := value.Unmarshal(to); err != nil {
			return 0, err
		}
	}
	if !blobOnly {
		return 0, nil
	}
	if _, err := d.WorkerOpt.Snapshotter.Stat(ctx, snapshot); err != nil {
		return 0, nil //nolint:nilerr // not mounted, so nothing of it is here
	}
	usage, err := d.WorkerOpt.Snapshotter.Usage(ctx, snapshot)
	return usage.Size, err
}

// Prune takes what lazy layers occupy from the limits that the others may.
func (d *decorated) Prune(ctx context.Context, ch chan client.UsageInfo, rules ...client.PruneInfo) error {
	if d.opt.layers == nil {
		return d.Worker.Prune(ctx, ch, rules...)
	}
	n, err := d.lazyTotal(ctx)
	if err != nil {
		return err
	}
	return d.Worker.Prune(ctx, ch, reduced(rules, n)...)
}

// reduced returns rules with limits that are lower by n. Those of the caller are
// the policy itself, which stays as it is.
func reduced(rules []client.PruneInfo, n int64) []client.PruneInfo {
	rules = slices.Clone(rules)
	for i := range rules {
		rules[i].MaxUsedSpace = without(rules[i].MaxUsedSpace, n)
		rules[i].ReservedSpace = without(rules[i].ReservedSpace, n)
	}
	return rules
}

func (d *decorated) lazyTotal(ctx context.Context) (total int64, err error) {
	records, err := d.Worker.DiskUsage(ctx, client.DiskUsageInfo{})
	if err != nil {
		return 0, err
	}
	for _, record := range records {
		n, err := d.lazySize(ctx, record.ID)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// without leaves a limit a limit: zero means none.
func without(limit, n int64) int64 {
	if limit == 0 {
		return 0
	}
	return max(limit-n, 1)
}
