package exporter

import (
	"context"
	"fmt"

	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/session"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression"
	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// WrapCache returns resolve, which makes the cache exporters that BuildKit
// calls name, with compression=estargz meaning ours. Only registry and local
// let users choose a compression. The inline cache takes that of the image,
// and the others ignore the attribute; none of them is touched. What a build does
// not say is d's to say.
func WrapCache(name string, resolve remotecache.ResolveCacheExporterFunc, pool *estargz.Pool, d Defaults) remotecache.ResolveCacheExporterFunc {
	return func(ctx context.Context, g session.Group, attrs map[string]string) (remotecache.Exporter, error) {
		if name != "registry" && name != "local" {
			if err := refuseOwn(attrs, fmt.Sprintf("a cache of type=%s has no compression of its own", name)); err != nil {
				return nil, err
			}
			return resolve(ctx, g, attrs)
		}
		if err := refuseImages(attrs); err != nil {
			return nil, err
		}
		if !wantsEStargz(attrs) {
			if err := refuseOwn(attrs, needsEStargz); err != nil {
				return nil, err
			}
			return resolve(ctx, g, attrs)
		}
		set, rest, err := d.parse(attrs)
		if err != nil {
			return nil, err
		}
		stock, err := resolve(ctx, g, rest)
		if err != nil || stock == nil {
			return stock, err
		}
		config := stock.Config()
		config.Compression.Type = compression.New(pool, set.Options)
		return &cacheExporter{Exporter: stock, config: config}, nil
	}
}

// cacheExporter is one --cache-to with compression=estargz. The solver makes
// the layers as its Config says.
type cacheExporter struct {
	remotecache.Exporter
	config remotecache.Config
}

func (e *cacheExporter) Config() remotecache.Config { return e.config }
