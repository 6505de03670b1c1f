package worker

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/disk"
)

// Prune deletes records by rules. BuildKit would compare limits with sizes of its
// own, so that rules with limits are applied here, and it is told which records to
// delete.
func (d *decorated) Prune(ctx context.Context, ch chan client.UsageInfo, rules ...client.PruneInfo) error {
	d.pruning.Lock()
	defer d.pruning.Unlock()
	for _, rule := range rules {
		if err := d.prune(ctx, ch, rule); err != nil {
			return err
		}
	}
	return nil
}

func (d *decorated) prune(ctx context.Context, ch chan client.UsageInfo, rule client.PruneInfo) error {
	all, ledger, err := d.usage(ctx)
	if err != nil {
		return err
	}
	rules := []client.PruneInfo{rule}
	if hasLimits(rule) {
		chosen, err := d.choose(ctx, all, ledger.clone(), rule)
		if err != nil || len(chosen) == 0 {
			return err
		}
		rules = byID(chosen)
	}
	if ch == nil {
		return d.Worker.Prune(ctx, nil, rules...)
	}
	deleted, done := make(chan client.UsageInfo), make(chan struct{})
	go func() {
		defer close(done)
		for record := range deleted {
			record.Size = ledger.free(record.ID)
			ch <- record
		}
	}()
	err = d.Worker.Prune(ctx, deleted, rules...)
	close(deleted)
	<-done
	return err
}

// byID returns rules that delete the records with these IDs. BuildKit deletes ten
// records at a time and compares all others with the filters each time, with its
// cache locked, so that a rule names no more than ten.
func byID(ids []string) (rules []client.PruneInfo) {
	for ten := range slices.Chunk(ids, 10) {
		rule := client.PruneInfo{All: true}
		for _, id := range ten {
			rule.Filter = append(rule.Filter, "id=="+id)
		}
		rules = append(rules, rule)
	}
	return rules
}

func hasLimits(rule client.PruneInfo) bool {
	return rule.MaxUsedSpace != 0 || rule.ReservedSpace != 0 || rule.MinFreeSpace != 0
}

// choose returns the records to delete for a rule with limits.
func (d *decorated) choose(ctx context.Context, all []*client.UsageInfo, l *ledger, rule client.PruneInfo) ([]string, error) {
	var total int64
	sizes := sizes(all, l.clone())
	for _, record := range all {
		if !record.Shared { // with an image
			total += sizes[record.ID]
		}
	}
	var free int64
	if rule.MinFreeSpace != 0 {
		stat, err := disk.GetDiskStat(d.Root)
		if err != nil {
			return nil, err
		}
		free = stat.Free
	}
	excess := total - keep(rule, total, free)
	if excess <= 0 {
		return nil, nil
	}
	matching, err := d.Worker.DiskUsage(ctx, client.DiskUsageInfo{Filter: rule.Filter, AgeLimit: rule.KeepDuration})
	if err != nil {
		return nil, err
	}
	matching = slices.DeleteFunc(matching, func(r *client.UsageInfo) bool { return r.InUse || !rule.All && isKept(r) })
	return chooseFrom(matching, children(all), l, excess), nil
}

// isKept says whether only a rule for all records deletes this one.
func isKept(r *client.UsageInfo) bool {
	return r.Shared || r.RecordType == client.UsageRecordTypeInternal || r.RecordType == client.UsageRecordTypeFrontend
}

// keep is how much may stay of a total, as BuildKit documents its limits.
func keep(rule client.PruneInfo, total, free int64) int64 {
	kept := total
	if rule.MaxUsedSpace != 0 {
		kept = min(kept, rule.MaxUsedSpace)
	} else if rule.MinFreeSpace == 0 {
		kept = 0 // down to what is reserved
	}
	if lacking := rule.MinFreeSpace - free; lacking > 0 {
		kept = min(kept, total-lacking)
	}
	return max(kept, rule.ReservedSpace)
}

// children counts the records upon each record.
func children(all []*client.UsageInfo) map[string]int {
	n := map[string]int{}
	for _, record := range all {
		for _, parent := range record.Parents {
			n[parent]++
		}
	}
	return n
}

// chooseFrom returns records whose deletion frees as many bytes, the least used
// first and none before those upon it.
func chooseFrom(records []*client.UsageInfo, children map[string]int, l *ledger, excess int64) (ids []string) {
	records = leastUsedFirst(records)
	for excess > 0 {
		at := slices.IndexFunc(records, func(r *client.UsageInfo) bool { return children[r.ID] == 0 })
		if at < 0 {
			break
		}
		record := records[at]
		records = slices.Delete(records, at, at+1)
		for _, parent := range record.Parents {
			children[parent]--
		}
		ids = append(ids, record.ID)
		excess -= l.free(record.ID)
	}
	return ids
}

// leastUsedFirst sorts records by the sum of their ranks in the order of their
// last use and in that of how often they were used, which count alike.
func leastUsedFirst(records []*client.UsageInfo) []*client.UsageInfo {
	score := map[string]float64{}
	for _, compare := range []func(a, b *client.UsageInfo) int{
		func(a, b *client.UsageInfo) int { return lastUse(a).Compare(lastUse(b)) },
		func(a, b *client.UsageInfo) int { return cmp.Compare(a.UsageCount, b.UsageCount) },
	} {
		sorted := slices.SortedFunc(slices.Values(records), compare)
		ranks, rank := make([]int, len(sorted)), 0
		for i := range sorted {
			if i > 0 && compare(sorted[i-1], sorted[i]) < 0 {
				rank++
			}
			ranks[i] = rank
		}
		for i, record := range sorted {
			score[record.ID] += float64(ranks[i]) / float64(rank+1)
		}
	}
	return slices.SortedFunc(slices.Values(records), func(a, b *client.UsageInfo) int {
		return cmp.Or(cmp.Compare(score[a.ID], score[b.ID]), lastUse(a).Compare(lastUse(b)), cmp.Compare(a.ID, b.ID))
	})
}

func lastUse(r *client.UsageInfo) time.Time {
	if r.LastUsedAt == nil {
		return time.Time{}
	}
	return *r.LastUsedAt
}
