package integration

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A daemon that is killed while it records leaves nothing that the next one
// would stumble over, and the workload ends with it.
func TestKilledWhileRecording(t *testing.T) {
	needs(t)
	d := startDaemon(t, ours)
	dir := dataImage(t)
	output := profiled(repository(t), `"estargz-profile-cmd=sh -c 'cat first; `+forever+`'"`, "estargz-profile-period=5m")
	client := d.command(t.Context(), "buildx", "build", "--progress=quiet", "--output", output, dir)
	require.NoError(t, client.Start())
	// The client's command line has the workload's in it.
	runs := func() bool {
		return slices.ContainsFunc(running(t, forever), func(line string) bool { return strings.HasPrefix(line, forever) })
	}
	eventually(t, runs, func() string { return "the workload does not run" })
	d.Kill()
	require.Error(t, client.Wait())

	d.start(t)
	p, image := d.profileOf(t, dir, []string{"sh", "-c", "cat first"})
	require.Empty(t, p.warnings)
	layers := prioritized(t, onlyImage(t, image))
	require.Equal(t, "data/first", layers[len(layers)-1])
	requireNothingLeft(t, d.Dir)
}
