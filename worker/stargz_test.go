package worker

import (
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazy"
)

func TestLimits(t *testing.T) {
	require.Zero(t, limits(nil), "without garbage collection")
	require.Equal(t, lazy.Limits{MinFree: 7, MaxUsed: 200}, limits([]client.PruneInfo{
		{Filter: []string{"type==regular"}, MaxUsedSpace: 1000},
		{MinFreeSpace: 7, MaxUsedSpace: 100},
		{All: true, MinFreeSpace: 5, MaxUsedSpace: 200},
	}))
	require.Equal(t, lazy.Limits{MaxUsed: 50}, limits([]client.PruneInfo{{All: true, ReservedSpace: 50}}),
		"a rule with no other limit prunes down to what is reserved")
}
