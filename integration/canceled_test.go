package integration

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// requireNothingInUse waits until all records of the cache could be pruned.
func requireNothingInUse(t *testing.T, d *daemon) {
	t.Helper()
	require.Eventually(t, func() bool {
		return !strings.Contains(d.buildctl(t, "du", "--verbose"), "Reclaimable:\tfalse")
	}, 10*time.Second, 100*time.Millisecond)
}

// A client that goes in the middle of a step, in order or not, leaves nothing that
// cannot be pruned.
func TestCanceled(t *testing.T) {
	needs(t)
	for _, snapshotter := range []string{"overlayfs", "stargz"} {
		for _, how := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
			t.Run(snapshotter+" "+how.String(), func(t *testing.T) {
				d := startDaemon(t, ours, "--oci-worker-snapshotter="+snapshotter)
				dir := upon(t, busybox(t), "echo much >/written; sleep 300")
				client := d.command(t.Context(), "buildctl", "build", "--frontend=dockerfile.v0", "--local=context="+dir, "--local=dockerfile="+dir)
				require.NoError(t, client.Start())
				require.Eventually(t, func() bool { return runs(t, d) }, time.Minute, 50*time.Millisecond)
				require.NoError(t, client.Process.Signal(how))
				require.Error(t, client.Wait())
				require.Eventually(t, func() bool { return !runs(t, d) }, time.Minute, 50*time.Millisecond)
				requireNothingInUse(t, d)
			})
		}
	}
}

// runs says whether a step of the daemon's runs.
func runs(t *testing.T, d *daemon) bool {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(d.Dir, "root", "runc-*", "executor", "*", "config.json"))
	require.NoError(t, err)
	return len(found) > 0
}
