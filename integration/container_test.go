package integration

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A podman has its own images and containers. Its defaults for cgroups and
// limits ask for more than many a machine gives, and so does crun.
type podman struct{ flags []string }

func newPodman(t *testing.T) *podman {
	t.Helper()
	runc, err := exec.LookPath("runc")
	require.NoError(t, err)
	dir := tempDir(t)
	return &podman{flags: []string{
		"--runtime", runc, "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"),
		"--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "none",
	}}
}

func (p *podman) command(args ...string) *exec.Cmd {
	return exec.Command("podman", append(p.flags, args...)...)
}

func (p *podman) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := output(t, p.command(args...))
	require.NoError(t, err)
	return out
}

// args are those of a container, with limits that this machine gives.
func (*podman) args(run string, more ...string) []string {
	return append([]string{run, "--quiet", "--tls-verify=false",
		"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}, more...)
}

// runOnce runs a container to its end.
func (p *podman) runOnce(t *testing.T, args ...string) string {
	t.Helper()
	return p.run(t, p.args("run", append([]string{"--rm"}, args...)...)...)
}

// runPodman pulls the image and runs it.
func runPodman(t *testing.T, image string, args ...string) string {
	t.Helper()
	return newPodman(t).runOnce(t, append([]string{"--network", "none", image}, args...)...)
}
