package exporter

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	cacheimporttypes "github.com/moby/buildkit/cache/remotecache/v1/types"
	bkexporter "github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/solver/result"
)

// inlineCache returns an inline cache with no time after the epoch in it. It is
// part of the image's config and tells when each step was built, which would
// make two builds of the same input two images.
func (r *rewriter) inlineCache(src *bkexporter.Source, stock exptypes.InlineCache) exptypes.InlineCache {
	return func(ctx context.Context) (*result.Result[*exptypes.InlineCacheEntry], error) {
		res, err := stock(ctx)
		if err != nil || res == nil {
			return res, err
		}
		ps, err := exptypes.ParsePlatforms(src.Metadata)
		if err != nil {
			return nil, err
		}
		if err := r.clamp(src, &ps.Platforms[0], res.Ref); err != nil {
			return nil, err
		}
		for id, entry := range res.Refs {
			if err := r.clamp(src, platformOf(src, ps, id), entry); err != nil {
				return nil, err
			}
		}
		return res, nil
	}
}

func (r *rewriter) clamp(src *bkexporter.Source, p *exptypes.Platform, entry *exptypes.InlineCacheEntry) error {
	tm, err := r.epochOf(src, p)
	if err != nil || tm == nil || entry == nil {
		return err
	}
	var records []cacheimporttypes.CacheRecord
	if err := json.Unmarshal(entry.Data, &records); err != nil {
		return fmt.Errorf("inline cache: %w", err)
	}
	earlier := func(t *time.Time) {
		if t.After(*tm) {
			*t = *tm
		}
	}
	for _, record := range records {
		for i := range record.Results {
			earlier(&record.Results[i].CreatedAt)
		}
		for i := range record.ChainedResults {
			earlier(&record.ChainedResults[i].CreatedAt)
		}
	}
	entry.Data, err = json.Marshal(records)
	return err
}
