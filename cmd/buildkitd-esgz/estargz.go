package main

import (
	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/exporter"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker"
)

// This file is where our packages meet BuildKit's: they do not know each other.

// workerOptions is what we add to a worker.
func workerOptions() worker.Options {
	return worker.Options{WrapExporter: wrapExporter}
}

// wrapExporter is called for the exporter of every -o, by its type.
func wrapExporter(_ string, e exporter.Exporter) (exporter.Exporter, error) {
	return e, nil
}

// wrapCacheExporter is called for every kind of --cache-to.
func wrapCacheExporter(f remotecache.ResolveCacheExporterFunc) remotecache.ResolveCacheExporterFunc {
	return f
}
