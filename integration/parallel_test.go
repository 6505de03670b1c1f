package integration

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Many exports at once, which share one budget of workers and memory, are as whole
// as one alone.
func TestParallelExports(t *testing.T) {
	needs(t)
	const builds = 6
	dir := slowImage(t)
	d := startDaemon(t, ours)
	for n := range builds {
		d.build(t, dir, "--build-arg", fmt.Sprint("ROUND=", n), "--output", "type=cacheonly")
	}
	var all sync.WaitGroup
	errs := make([]error, builds)
	for n := range builds {
		all.Go(func() {
			_, errs[n] = d.tryBuild(t, dir, "--build-arg", fmt.Sprint("ROUND=", n), "--output", estargz(fmt.Sprint(repository(t), ":", n)))
		})
	}
	all.Wait()
	for n, err := range errs {
		require.NoError(t, err)
		requireEStargz(t, fmt.Sprint(repository(t), ":", n))
	}
}
