package main

import (
	"context"
	"errors"
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
func newController(ctx context.Context, cfg config.Config, ours *parts, t *telemetry, debug *debugServer) (_ *control.Controller, err error) {
	host, err := newHost(cfg)
	if err != nil {
		return nil, err
	}
	workers, err := newWorkers(ctx, cfg, host, ours.worker())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil { // and nobody else closes them, with all that they mounted
			err = errors.Join(err, workers.Close())
		}
	}()
	preferred, err := workers.GetDefault()
	if err != nil {
		return nil, err
	}
	frontends, err := newFrontends(cfg, workers.Infos())
	if err != nil {
		return nil, err
	}
	state, err := openState(cfg)
	if err != nil {
		return nil, err
	}
	debug.showCache(state.cache)
	backends := newCacheBackends(cfg, host, preferred.ContentStore())

	return control.NewController(control.Opt{
		SessionManager:            host.Sessions,
		WorkerController:          workers,
		Frontends:                 ours.frontends(frontends, preferred),
		CacheManager:              solver.NewCacheManager(ctx, "local", state.cache, bkworker.NewCacheResultStorage(workers)),
		ResolveCacheExporterFuncs: ours.cacheExporters(backends.exporters()),
		ResolveCacheImporterFuncs: backends.importers(),
		Entitlements:              allowedEntitlements(cfg),
		TraceCollector:            t.collector,
		MeterProvider:             t.meter,
		HistoryDB:                 state.history,
		CacheStore:                state.cache,
		LeaseManager:              preferred.LeaseManager(),
		ContentStore:              preferred.ContentStore(),
		HistoryConfig:             cfg.History,
		ProxyNetwork:              cfg.ProxyNetwork,
		GarbageCollect:            preferred.GarbageCollect,
		GracefulStop:              ctx.Done(),
		ProvenanceEnv:             state.provenanceEnv,
	})
}

// newHost returns what all workers have in common.
func newHost(cfg config.Config) (worker.Host, error) {
	sessions, err := session.NewManager()
	if err != nil {
		return worker.Host{}, err
	}
	devices, err := newDevices(cfg.CDI)
	if err != nil {
		return worker.Host{}, err
	}
	return worker.Host{
		Root:        cfg.Root,
		Version:     clientVersion(),
		Registries:  resolver.NewRegistryConfig(cfg.Registries),
		Sessions:    sessions,
		DNS:         cfg.DNS,
		CDI:         devices,
		TraceSocket: cfg.OTEL.SocketPath,
	}, nil
}

// state is what the controller itself keeps on disk. It closes the databases.
type state struct {
	cache         *bboltcachestorage.Store
	history       db.DB
	provenanceEnv map[string]any
}

func openState(cfg config.Config) (s state, err error) {
	if s.provenanceEnv, err = loadProvenanceEnv(cfg.ProvenanceEnvDir); err != nil {
		return s, err
	}
	if s.cache, err = bboltcachestorage.NewStore(filepath.Join(cfg.Root, "cache.db")); err != nil {
		return s, fmt.Errorf("cache.db: %w", err)
	}
	s.history, err = boltutil.SafeOpen(filepath.Join(cfg.Root, "history.db"), 0o600, &bolt.Options{
		FreelistType: bolt.FreelistMapType,
	})
	if err != nil {
		return s, fmt.Errorf("history.db: %w", err)
	}
	return s, nil
}
