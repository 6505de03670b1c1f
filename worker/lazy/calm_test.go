package lazy

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestCalm says when the background's time is.
func TestCalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &calm{}
		await := func() (time.Duration, bool) {
			start := time.Now()
			soon, err := c.await(t.Context())
			require.NoError(t, err)
			return time.Since(start), soon
		}
		took, soon := await()
		require.Zero(t, took, "nobody reads")
		require.False(t, soon)

		c.reads()
		took, soon = await()
		require.Equal(t, quiet+lookAgain, took)
		require.False(t, soon)

		c.reads()
		c.waits()
		time.AfterFunc(quiet/2, func() {
			for range few {
				c.waits()
			}
		})
		took, soon = await()
		require.InDelta(t, quiet/2, took, float64(lookAgain))
		require.True(t, soon)

		c.prefetching.Add(1)
		for range few {
			c.waits()
		}
		time.AfterFunc(5*quiet, func() { c.prefetching.Add(-1) })
		took, soon = await()
		require.InDelta(t, 5*quiet, took, float64(lookAgain))
		require.False(t, soon, "what it waited for is what was being fetched")

		c.reads()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := c.await(ctx)
		require.ErrorIs(t, err, context.Canceled)
	})
}
