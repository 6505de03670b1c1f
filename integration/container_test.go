package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// The Dockerfile's image is a builder as buildx expects of one: it gets flags
// only, and is asked with buildctl and buildkitd --version. The binaries come
// from outside, since no base with Go is at hand.
func TestDaemonImage(t *testing.T) {
	needs(t)
	binaries := tempDir(t)
	run(t, "mkdir", filepath.Join(binaries, "out"))
	run(t, "cp", ours, filepath.Join(binaries, "out", "buildkitd-esgz"))
	run(t, "cp", tool("buildctl"), filepath.Join(binaries, "out"))
	image := repository(t) + ":latest"
	d := startDaemon(t, ours)
	d.build(t, "..", "--build-context", "build="+binaries, "--build-arg", "DEBIAN="+debian(t), "--output", estargz(image))
	requireEStargz(t, image)

	p := newPodman(t)
	sockets := tempDir(t)
	const id = "builder"
	p.run(t, "run", "--name", id, "--quiet", "--detach", "--privileged", "--network", "host", "--tls-verify=false",
		"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024",
		"--volume", sockets+":/run/buildkit", image, "--oci-worker-net=host")
	t.Cleanup(func() { p.run(t, "rm", "--force", "--volumes", "--time", "20", id) })
	eventually(t, func() bool { return p.command("exec", id, "buildctl", "debug", "workers").Run() == nil },
		func() string { return p.run(t, "logs", id) })
	require.Regexp(t, `^\S+ \S+ v\d+\.\d+\.\d+\S* \S+\n$`, p.run(t, "exec", id, "buildkitd", "--version"))
	p.run(t, "exec", id, "sh", "-c", "command -v fusermount3 fusermount git runc iptables")

	inside := &daemon{dir: tempDir(t)}
	require.NoError(t, os.Symlink(filepath.Join(sockets, "buildkitd.sock"), filepath.Join(inside.dir, "buildkitd.sock")))
	inside.buildx(t, "create", "--name", "test", "--driver", "remote", inside.address())
	built := repository(t) + "/built:latest"
	inside.build(t, helloImage(t), "--output", estargz(built))
	require.Len(t, requireEStargz(t, built), 4)
}

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

// runPodman pulls the image and runs it.
func runPodman(t *testing.T, image string, args ...string) string {
	t.Helper()
	return newPodman(t).run(t, append([]string{
		"run", "--rm", "--quiet", "--tls-verify=false", "--network", "none",
		"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", image,
	}, args...)...)
}
