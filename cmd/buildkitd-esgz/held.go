package main

import (
	"context"
	"errors"
	"time"

	"github.com/moby/buildkit/solver"
	"google.golang.org/grpc"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker"
)

// releaseHeld releases what the error of a build holds. If the input of a step cannot
// be pulled, or no checksum be made of it, BuildKit gives the error a reference to its
// record, and releases it only if the frontend has seen the error; otherwise the record
// would be in use, and never be pruned, until the daemon ends.
func releaseHeld(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	answer, err := handler(ctx, req)
	var slow *solver.SlowCacheError
	if errors.As(err, &slow) {
		_ = slow.Result.Release(context.WithoutCancel(ctx))
	}
	return answer, err
}

// explain adds to the error of a build why lazy layers could not be read.
func explain(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	began := time.Now()
	answer, err := handler(ctx, req)
	return answer, worker.Explain(err, began)
}
