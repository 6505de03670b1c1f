package lazy

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{}
		await := func() (time.Duration, bool) {
			start := time.Now()
			soon, err := g.await(t.Context())
			require.NoError(t, err)
			return time.Since(start), soon
		}
		took, soon := await()
		require.Zero(t, took, "nobody reads")
		require.False(t, soon)

		g.reads()
		took, soon = await()
		require.Equal(t, quiet+gateInterval, took)
		require.False(t, soon)

		g.reads()
		g.waits()
		time.AfterFunc(quiet/2, func() {
			for range few {
				g.waits()
			}
		})
		took, soon = await()
		require.InDelta(t, quiet/2, took, float64(gateInterval))
		require.True(t, soon)

		g.prefetching.Add(1)
		for range few {
			g.waits()
		}
		time.AfterFunc(5*quiet, func() { g.prefetching.Add(-1) })
		took, soon = await()
		require.InDelta(t, 5*quiet, took, float64(gateInterval))
		require.False(t, soon, "what it waited for is what was being fetched")

		g.reads()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := g.await(ctx)
		require.ErrorIs(t, err, context.Canceled)
	})
}
