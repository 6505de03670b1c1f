package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/cachedigest"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
)

// run is the life of the daemon: what it opens it closes again, in reverse,
// when ctx ends or serving fails.
func run(ctx context.Context, cfg configuration, saveCacheDebug bool) (err error) {
	// First of all: opening a unix socket takes its path away from another
	// daemon, which must not happen to one that is running on the same state.
	release, err := lockRoot(cfg.Root)
	if err != nil {
		return err
	}
	defer release()

	debug, err := startDebugServer(cfg.GRPC.DebugAddress)
	if err != nil {
		return err
	}
	defer debug.close()

	telemetry, err := newTelemetry(ctx)
	if err != nil {
		return err
	}
	defer telemetry.shutdown()

	// Before the controller, whose start may take long: clients wait in the
	// queue of the socket instead of being refused (moby/buildkit#4618).
	listeners, err := listenAll(cfg.GRPC)
	if err != nil {
		return err
	}
	defer closeAll(listeners)

	traces, err := startTraceSocket(cfg.OTEL.SocketPath, telemetry.collector)
	if err != nil {
		return err
	}
	defer traces.stop()

	closeCacheDebug, err := openCacheDebug(saveCacheDebug, cfg.Root)
	if err != nil {
		return err
	}
	defer closeCacheDebug()

	ours := newParts(cfg.defaults)
	controller, err := newController(ctx, cfg.Config, ours, telemetry, debug)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, controller.Close()) }()

	builds := newDrain()
	server := newAPIServer(telemetry, builds, ours.profiles.UnaryServerInterceptor)
	healthv1.RegisterHealthServer(server, health.NewServer())
	controller.Register(server)
	reflection.Register(server)
	return serve(ctx, server, builds, listeners)
}

// openCacheDebug makes BuildKit save the plain text behind its cache keys,
// which the debug address shows.
func openCacheDebug(enabled bool, root string) (closeDB func(), err error) {
	if !enabled {
		return func() {}, nil
	}
	path := filepath.Join(root, "cache-debug.db")
	db, err := cachedigest.NewDB(path)
	if err != nil {
		return nil, fmt.Errorf("%s (--%s): %w", path, saveCacheDebugFlag, err)
	}
	cachedigest.SetDefaultDB(db)
	return func() {
		if err := db.Close(); err != nil {
			bklog.L.WithError(err).Warnf("closing %s", path)
		}
	}, nil
}
