package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/moby/buildkit/solver"
	"github.com/stretchr/testify/require"
)

type heldResult struct {
	solver.Result
	released int
}

func (r *heldResult) Release(context.Context) error {
	r.released++
	return nil
}

func TestReleaseHeld(t *testing.T) {
	held, failed := &heldResult{}, errors.New("failed")
	for _, want := range []error{nil, failed, fmt.Errorf("build: %w", solver.WrapSlowCache(failed, 0, held))} {
		answer, err := releaseHeld(t.Context(), nil, nil, func(context.Context, any) (any, error) { return "answer", want })
		require.Equal(t, want, err)
		require.Equal(t, "answer", answer)
	}
	require.Equal(t, 1, held.released)
}
