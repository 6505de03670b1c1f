package main

import (
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/cache/remotecache/azblob"
	"github.com/moby/buildkit/cache/remotecache/gha"
	"github.com/moby/buildkit/cache/remotecache/gha/ghatypes"
	"github.com/moby/buildkit/cache/remotecache/inline"
	"github.com/moby/buildkit/cache/remotecache/local"
	"github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/cache/remotecache/s3"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	policy "github.com/moby/policy-helpers"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker"
)

// cacheBackends are the places that --cache-to and --cache-from can name.
type cacheBackends struct {
	host     worker.Host
	store    content.Store // of the worker that takes the layers
	github   *ghatypes.CacheConfig
	verifier func() (*policy.Verifier, error)
}

func newCacheBackends(cfg config.Config, host worker.Host, store content.Store) *cacheBackends {
	b := &cacheBackends{host: host, store: store, github: cfg.Cache.GHA}
	if b.github != nil && b.github.Verify.Required {
		b.verifier = lazyVerifier(cfg.Root)
	}
	return b
}

func (b *cacheBackends) exporters() map[string]remotecache.ResolveCacheExporterFunc {
	return map[string]remotecache.ResolveCacheExporterFunc{
		"registry": registry.ResolveCacheExporterFunc(b.host.Sessions, b.host.Registries),
		"local":    local.ResolveCacheExporterFunc(b.host.Sessions),
		"inline":   inline.ResolveCacheExporterFunc(),
		"gha":      gha.ResolveCacheExporterFunc(b.github, b.verifier),
		"s3":       s3.ResolveCacheExporterFunc(),
		"azblob":   azblob.ResolveCacheExporterFunc(),
	}
}

// importers has no inline: that cache is inside an image, which registry reads.
func (b *cacheBackends) importers() map[string]remotecache.ResolveCacheImporterFunc {
	return map[string]remotecache.ResolveCacheImporterFunc{
		"registry": registry.ResolveCacheImporterFunc(b.host.Sessions, b.store, b.host.Registries),
		"local":    local.ResolveCacheImporterFunc(b.host.Sessions),
		"gha":      gha.ResolveCacheImporterFunc(b.github, b.verifier),
		"s3":       s3.ResolveCacheImporterFunc(),
		"azblob":   azblob.ResolveCacheImporterFunc(),
	}
}

// lazyVerifier checks signatures of GitHub caches. It is made when first
// needed, as that fetches roots of trust.
func lazyVerifier(root string) func() (*policy.Verifier, error) {
	return sync.OnceValues(func() (*policy.Verifier, error) {
		return policy.NewVerifier(policy.Config{StateDir: filepath.Join(root, "policy")})
	})
}
