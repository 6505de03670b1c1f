package worker

import (
	"slices"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
)

// The worker hands out the slice that holds its policy.
func TestPolicyStays(t *testing.T) {
	policy := []client.PruneInfo{{MaxUsedSpace: 1000, ReservedSpace: 500, MinFreeSpace: 10}, {All: true, MaxUsedSpace: 2000}}
	before := slices.Clone(policy)
	for range 100 {
		rules := reduced(policy, 100)
		require.EqualValues(t, 900, rules[0].MaxUsedSpace)
		require.EqualValues(t, 400, rules[0].ReservedSpace)
		require.Zero(t, rules[1].ReservedSpace)
	}
	require.Equal(t, before, policy)
}
