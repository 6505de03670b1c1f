package integration

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Each exporter of a build gets the profile it asked for, or none.
func TestProfileOfEachExporter(t *testing.T) {
	needs(t)
	d, dir, image := startDaemon(t, ours), dataImage(t), repository(t)
	p := d.build(t, dir,
		"--output", profiled(image+":entrypoint"),
		"--output", estargz(image+":none"),
		"--output", profiled(image+":cmd", `"estargz-profile-cmd=cat /data/unused"`))
	require.Empty(t, p.warnings)
	require.Len(t, p.profileSteps(), 2)
	requireRead(t, image+":entrypoint", wantDataRead)
	requireRead(t, image+":cmd", []string{"nothing", "etc/passwd", "nothing", "data/unused"})
	for _, layer := range prioritized(t, onlyImage(t, image+":none")) {
		require.Equal(t, "no landmark", layer)
	}
	t.Run("files", func(t *testing.T) {
		p := d.build(t, dir, "--output", "type=local,compression=estargz,dest="+filepath.Join(tempDir(t), "out"))
		require.Empty(t, p.profileSteps(), p.text())
	})
}

// Where nothing can be recorded the layers are those of a build without a
// profile, and nothing looks like an error.
func TestProfileWithoutOverlay(t *testing.T) {
	needs(t)
	d, image := startDaemon(t, ours, "--oci-worker-snapshotter=native"), repository(t)+":latest"
	for range 2 { // what was not recorded is not cached as a profile
		p := d.build(t, dataImage(t), "--output", profiled(image))
		require.Contains(t, strings.Join(p.warnings, "\n"), "plain directory")
		for _, v := range p.steps() {
			require.Empty(t, v.Error, v.Name)
		}
		for _, layer := range prioritized(t, onlyImage(t, image)) {
			require.Equal(t, "no landmark", layer)
		}
	}
}
