package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/db"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/resolver"
	bkworker "github.com/moby/buildkit/worker"
	bolt "go.etcd.io/bbolt"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker"
)

// newController puts together what answers BuildKit's API.
func newController(ctx context.Context, cfg config.Config, t *telemetry, debug *debugServer) (*control.Controller, error) {
	sessions, err := session.NewManager()
	if err != nil {
		return nil, err
	}
	devices, err := newDevices(cfg.CDI)
	if err != nil {
		return nil, err
	}
	ours := newParts()
	registries := resolver.NewRegistryConfig(cfg.Registries)
	workers, err := newWorkers(ctx, cfg, worker.Host{
		Root:        cfg.Root,
		Version:     clientVersion(),
		Registries:  registries,
		Sessions:    sessions,
		DNS:         cfg.DNS,
		CDI:         devices,
		TraceSocket: cfg.OTEL.SocketPath,
	}, ours.worker())
	if err != nil {
		return nil, err
	}
	preferred, err := workers.GetDefault()
	if err != nil {
		return nil, err
	}
	frontends, err := newFrontends(cfg, workers.Infos())
	if err != nil {
		return nil, err
	}
	cache, err := bboltcachestorage.NewStore(filepath.Join(cfg.Root, "cache.db"))
	if err != nil {
		return nil, fmt.Errorf("cache.db: %w", err)
	}
	debug.showCache(cache)
	history, err := openHistory(cfg.Root)
	if err != nil {
		return nil, err
	}
	provenanceEnv, err := loadProvenanceEnv(cfg.ProvenanceEnvDir)
	if err != nil {
		return nil, err
	}
	backends := newCacheBackends(cfg, sessions, registries, preferred.ContentStore())

	return control.NewController(control.Opt{
		SessionManager:            sessions,
		WorkerController:          workers,
		Frontends:                 frontends,
		CacheManager:              solver.NewCacheManager(ctx, "local", cache, bkworker.NewCacheResultStorage(workers)),
		ResolveCacheExporterFuncs: ours.cacheExporters(backends.exporters()),
		ResolveCacheImporterFuncs: backends.importers(),
		Entitlements:              allowedEntitlements(cfg),
		TraceCollector:            t.collector,
		MeterProvider:             t.meter,
		HistoryDB:                 history,
		CacheStore:                cache,
		LeaseManager:              preferred.LeaseManager(),
		ContentStore:              preferred.ContentStore(),
		HistoryConfig:             cfg.History,
		ProxyNetwork:              cfg.ProxyNetwork,
		GarbageCollect:            preferred.GarbageCollect,
		GracefulStop:              ctx.Done(),
		ProvenanceEnv:             provenanceEnv,
	})
}

func openHistory(root string) (db.DB, error) {
	history, err := boltutil.SafeOpen(filepath.Join(root, "history.db"), 0o600, &bolt.Options{
		FreelistType: bolt.FreelistMapType,
	})
	if err != nil {
		return nil, fmt.Errorf("history.db: %w", err)
	}
	return history, nil
}
