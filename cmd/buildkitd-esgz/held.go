package main

import (
	"context"
	"errors"

	"github.com/moby/buildkit/solver"
	"google.golang.org/grpc"
)

// releaseHeld releases what the error of a build holds. BuildKit gives the error
// of a checksum that cannot be made a reference to the record that was read, and
// releases it only if the frontend has seen the error; otherwise the record would
// be in use, and never be pruned, until the daemon ends.
func releaseHeld(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	answer, err := handler(ctx, req)
	var slow *solver.SlowCacheError
	if errors.As(err, &slow) {
		_ = slow.Result.Release(context.WithoutCancel(ctx))
	}
	return answer, err
}
