package integration

import (
	"path/filepath"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// What a workload reads of lazy layers is recorded like what it reads of others,
// and recording pulls none of them.
func TestProfileUponLazyBase(t *testing.T) {
	needs(t)
	base, image := repository(t)+":base", repository(t)+":latest"
	startDaemon(t, ours).build(t, dataImage(t), "--output", estargz(base))
	dir := writeFiles(t, map[string]string{
		"Dockerfile": "FROM " + base + "\nCOPY new unread /new/\nCMD [\"cat\", \"/data/first\", \"/new/new\"]\n",
		"new":        "new\n", "unread": "unread\n",
	})
	d := startLazy(t, onDemand)
	p := d.build(t, dir, "--output", profiled(image))
	require.Empty(t, p.warnings)
	require.Contains(t, p.logs.String(), "(exit)\n")
	requireNotPulled(t, d, onlyImage(t, base).Manifest.Layers)
	layers := prioritized(t, onlyImage(t, image))
	require.Equal(t, "new/new", layers[len(layers)-1])

	d.build(t, dir, "--output", profiled(image+"-lazy", "estargz-reorder=all"))
	startDaemon(t, ours).build(t, dir, "--output", profiled(image+"-eager", "estargz-reorder=all"))
	lazy := prioritized(t, onlyImage(t, image+"-lazy"))
	require.Equal(t, prioritized(t, onlyImage(t, image+"-eager")), lazy)
	require.Equal(t, "data/first", lazy[len(lazy)-2])
}

// requireNotPulled: a daemon with the lazy snapshotter has mounted layers and not
// pulled them.
func requireNotPulled(t *testing.T, d *daemon, layers []ocispecs.Descriptor) {
	t.Helper()
	blobs := filepath.Join(d.Dir, "root", "runc-stargz", "content", "blobs", "sha256")
	require.DirExists(t, blobs)
	for _, layer := range layers {
		require.NoFileExists(t, filepath.Join(blobs, layer.Digest.Encoded()))
	}
}
