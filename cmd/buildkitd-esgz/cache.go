package main

import (
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/cache/remotecache/azblob"
	"github.com/moby/buildkit/cache/remotecache/gha"
	"github.com/moby/buildkit/cache/remotecache/inline"
	"github.com/moby/buildkit/cache/remotecache/local"
	"github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/cache/remotecache/s3"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/session"
	policy "github.com/moby/policy-helpers"
)

// cacheBackends are the places that --cache-to and --cache-from can name.
type cacheBackends struct {
	cfg        config.Config
	sessions   *session.Manager
	registries docker.RegistryHosts
	content    content.Store
	verifier   func() (*policy.Verifier, error)
}

func newCacheBackends(cfg config.Config, sessions *session.Manager, registries docker.RegistryHosts, store content.Store) *cacheBackends {
	b := &cacheBackends{cfg: cfg, sessions: sessions, registries: registries, content: store}
	if g := cfg.Cache.GHA; g != nil && g.Verify.Required {
		b.verifier = lazyVerifier(cfg.Root)
	}
	return b
}

func (b *cacheBackends) exporters() map[string]remotecache.ResolveCacheExporterFunc {
	return map[string]remotecache.ResolveCacheExporterFunc{
		"registry": registry.ResolveCacheExporterFunc(b.sessions, b.registries),
		"local":    local.ResolveCacheExporterFunc(b.sessions),
		"inline":   inline.ResolveCacheExporterFunc(),
		"gha":      gha.ResolveCacheExporterFunc(b.cfg.Cache.GHA, b.verifier),
		"s3":       s3.ResolveCacheExporterFunc(),
		"azblob":   azblob.ResolveCacheExporterFunc(),
	}
}

// importers has no inline: that cache is inside an image, which registry reads.
func (b *cacheBackends) importers() map[string]remotecache.ResolveCacheImporterFunc {
	return map[string]remotecache.ResolveCacheImporterFunc{
		"registry": registry.ResolveCacheImporterFunc(b.sessions, b.content, b.registries),
		"local":    local.ResolveCacheImporterFunc(b.sessions),
		"gha":      gha.ResolveCacheImporterFunc(b.cfg.Cache.GHA, b.verifier),
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
