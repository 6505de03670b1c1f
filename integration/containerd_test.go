package integration

import (
	"path/filepath"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// A peer is a node with a directory of its own.
type peer struct {
	*harness.Node
	dir string
}

// startContainerd starts a node; the flags are the snapshotter's.
func startContainerd(t *testing.T, flags ...string) *peer {
	t.Helper()
	dir := tempDir(t)
	n, err := harness.StartNode(t.Context(), bin, dir, flags...)
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := n.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of containerd:\n%s\nof the snapshotter:\n%s", n.Tail(), n.Snapshotter.Tail())
		}
	})
	return &peer{n, dir}
}

func (p *peer) stargzRoot() string { return filepath.Join(p.dir, "stargz") }

func (p *peer) ctr(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, "ctr", append([]string{"--address", p.Address}, args...)...)
}

// runPlain pulls all of the image, unpacks it and runs the command in it.
func (p *peer) runPlain(t *testing.T, image string, command ...string) string {
	t.Helper()
	p.ctr(t, "images", "pull", "--plain-http", image)
	return p.ctr(t, append([]string{"run", "--rm", image, "plain"}, command...)...)
}

// requireMounts checks that each of n layers is a lazy mount.
func (p *peer) requireMounts(t *testing.T, n int) {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(p.stargzRoot()))
	require.NoError(t, err)
	require.Len(t, mounts, n, "each layer is a mount")
	for _, m := range mounts {
		require.Contains(t, m.FSType, "fuse")
	}
}

// runLazily mounts the image's layers and runs the command in it.
func (p *peer) runLazily(t *testing.T, image string, command ...string) string {
	t.Helper()
	run(t, "lazy-pull", "-address", p.Address, image)
	return p.ctr(t, append([]string{"run", "--rm", "--snapshotter", "stargz", image, "lazy"}, command...)...)
}
