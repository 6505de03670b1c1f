package main

import (
	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/cache/remotecache"
	bkexporter "github.com/moby/buildkit/exporter"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression"
	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
	"github.com/buildkitd-esgz/buildkitd-esgz/exporter"
	"github.com/buildkitd-esgz/buildkitd-esgz/frontend"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/record"
)

// parts is where our packages meet BuildKit's: they do not know each other.
type parts struct {
	// compressors is the budget of everything that writes eStargz, however many
	// builds do so at once.
	compressors *estargz.Pool
	// profiles are those that the exporters of running builds ask for.
	profiles *frontend.Requests
	// marks say between frontends and workers whose reads are recorded.
	marks *record.Marks
	// defaults are the operator's.
	defaults exporter.Defaults
}

func newParts(defaults exporter.Defaults) *parts {
	return &parts{
		compressors: estargz.NewPool(0, 0),
		profiles:    frontend.NewRequests(compression.Name, defaults.Profile),
		marks:       record.NewMarks(),
		defaults:    defaults,
	}
}

// worker is what we add to a worker.
func (p *parts) worker() worker.Options {
	return worker.Options{WrapExporter: p.exporter, Marks: p.marks}
}

// exporter stands in for BuildKit's exporter of one -o.
func (p *parts) exporter(name string, e bkexporter.Exporter, store content.Store) bkexporter.Exporter {
	return exporter.Wrap(name, e, store, p.compressors, p.defaults)
}

// cacheExporters replaces all kinds of --cache-to.
func (p *parts) cacheExporters(stock map[string]remotecache.ResolveCacheExporterFunc) map[string]remotecache.ResolveCacheExporterFunc {
	wrapped := make(map[string]remotecache.ResolveCacheExporterFunc, len(stock))
	for name, resolve := range stock {
		wrapped[name] = exporter.WrapCache(name, resolve, p.compressors, p.defaults)
	}
	return wrapped
}
