package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
)

// A peer is containerd with its overlayfs snapshotter, which knows nothing of
// eStargz, and the stock stargz-snapshotter as its proxy plugin.
type peer struct {
	dir     string
	address string
}

// startContainerd starts both; the flags are the snapshotter's.
func startContainerd(t *testing.T, flags ...string) *peer {
	t.Helper()
	dir := tempDir(t)
	p := &peer{dir: dir, address: filepath.Join(dir, "containerd.sock")}

	snapshotter := startStargzSnapshotter(t, dir, flags...)
	config := filepath.Join(dir, "containerd.toml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `
version = 3
root = %q
state = %q
[grpc]
  address = %q
[ttrpc]
  address = %q
[proxy_plugins.stargz]
  type = "snapshot"
  address = %q
`, filepath.Join(dir, "containerd"), filepath.Join(dir, "state"), p.address, p.address+".ttrpc", snapshotter), 0o600))

	cmd := exec.Command(tool("containerd"), "--config", config)
	// The shim is found on the path.
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	serve(t, dir, "containerd", cmd, func() bool {
		return exec.Command(tool("ctr"), "--address", p.address, "version").Run() == nil
	})
	t.Cleanup(func() {
		// A container outlives the command that runs it, and containerd.
		for id := range strings.FieldsSeq(p.ctr(t, "tasks", "ls", "-q")) {
			p.ctr(t, "tasks", "rm", "--force", id)
		}
	})
	return p
}

func (p *peer) stargzRoot() string { return filepath.Join(p.dir, "stargz") }

func (p *peer) ctr(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, "ctr", append([]string{"--address", p.address}, args...)...)
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
	run(t, "lazy-pull", "-address", p.address, image)
	return p.ctr(t, append([]string{"run", "--rm", "--snapshotter", "stargz", image, "lazy"}, command...)...)
}
