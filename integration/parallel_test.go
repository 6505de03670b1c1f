package integration

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Exports share one budget: many at once need hardly more memory than one.
func TestParallelExports(t *testing.T) {
	needs(t)
	const builds = 6
	dir := slowImage(t)
	// The budget grows with the processors, of which one export may leave some idle.
	d := startDaemonEnv(t, ours, []string{"GOMAXPROCS=2"})
	for n := range builds + 1 {
		d.build(t, dir, "--build-arg", fmt.Sprint("ROUND=", n), "--output", "type=cacheonly")
	}
	export := func(n int) error {
		_, err := d.tryBuild(t, dir, "--build-arg", fmt.Sprint("ROUND=", n), "--output", estargz(fmt.Sprint(repository(t), ":", n)))
		return err
	}
	require.NoError(t, export(0))
	one := peakMemory(t, d)

	var all sync.WaitGroup
	errs := make([]error, builds)
	for n := range builds {
		all.Go(func() { errs[n] = export(n + 1) })
	}
	all.Wait()
	for n, err := range errs {
		require.NoError(t, err)
		requireEStargz(t, fmt.Sprint(repository(t), ":", n+1))
	}
	many := peakMemory(t, d)
	t.Logf("peak memory: %d MiB for one export, %d MiB for %d at once", one>>20, many>>20, builds)
	require.Less(t, many, 2*one, "peak memory of %d exports at once", builds)
}

// peakMemory is the most that the daemon was resident, in bytes.
func peakMemory(t *testing.T, d *daemon) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	require.NoError(t, err)
	var kib int64
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			_, err := fmt.Sscanf(rest, "%d kB", &kib)
			require.NoError(t, err)
		}
	}
	require.NotZero(t, kib)
	return kib << 10
}
