package integration

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// Pruning to a limit counts lazy layers and what was built upon them. It takes what was used least until the rest
// is below the limit, and nothing the next time.
func TestLazyPruneToLimit(t *testing.T) {
	needs(t)
	base := registry(t) + "/" + pushLazy(t)
	d := startLazy(t, onDemand)
	step := func(n int) string {
		return upon(t, base, fmt.Sprintf("cat /one /two >/dev/null; hardfiles random /more 10000000 %d", n))
	}
	for n := range 3 {
		p := d.build(t, step(n))
		require.NotContains(t, p.logs.String(), "is not lazy")
	}
	before := diskBytes(t, d.buildctl(t, "du"))
	require.Greater(t, before, 54e6, "24 MB of lazy layers and three times 10 MB\n%s", d.buildctl(t, "du", "--verbose"))
	for range 5 {
		d.buildctl(t, "prune", "--all", "--keep-storage", fmt.Sprint(before/1e6-15))
		du := d.buildctl(t, "du", "--verbose")
		require.InDelta(t, before-20e6, diskBytes(t, du), 1e6, "two steps go, and nothing else\n%s", du)
	}
	requireRunCached(t, d.build(t, step(2)))
	d.buildctl(t, "prune", "--all", "--keep-storage", "1")
	require.Less(t, diskBytes(t, d.buildctl(t, "du")), 1e6)
}
