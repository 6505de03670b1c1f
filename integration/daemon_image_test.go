package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The images of the daemon are built by the daemon, with docker-bake.hcl and bases
// that are had without registries on the internet.

const revision = "0123456789abcdef0123456789abcdef01234567"

// bake builds a target of docker-bake.hcl.
func (d *daemon) bake(t *testing.T, registry, target string, args ...string) string {
	t.Helper()
	return d.bakeWith(t, registry, "buildx", append([]string{"bake", "--progress=plain", target}, args...)...)
}

// bakeWith runs a command that builds a target of docker-bake.hcl.
func (d *daemon) bakeWith(t *testing.T, registry, name string, args ...string) string {
	t.Helper()
	cmd := d.command(t.Context(), name, args...)
	cmd.Dir = ".."
	cmd.Env = append(cmd.Env,
		"REGISTRY="+registry, "REVISION="+revision, "SOURCE_DATE_EPOCH=1234567890",
		"DEBIAN="+debian(t), "BINFMT=scratch", "SBOM_GENERATOR="+scannerImage(t), "PLATFORMS=linux/amd64",
		// Otherwise a person is asked whether other directories may be read.
		"BUILDX_BAKE_ENTITLEMENTS_FS=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// builtOutside is a context that takes the place of the stage that builds all
// programs: the daemon under test, and the others.
func builtOutside(t *testing.T) string {
	t.Helper()
	dir := tempDir(t)
	programs, rootless := filepath.Join(dir, "out", "bin"), filepath.Join(dir, "out", "rootless")
	run(t, "mkdir", "-p", programs, rootless)
	run(t, "cp", "../hack/daemon/buildctl-daemonless.sh", programs)
	// As large as those that the stage builds.
	run(t, "strip", "-o", filepath.Join(programs, "buildkitd-esgz"), ours)
	run(t, "strip", "-o", filepath.Join(programs, "buildctl"), bin.Path("buildctl"))
	run(t, "ln", "-s", "buildkitd-esgz", filepath.Join(programs, "buildkitd"))

	cmd := exec.Command("go", "-C", "../hack/daemon", "build", "-o", rootless+"/", "tool")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-ldflags=-s")
	_, err := output(t, cmd)
	require.NoError(t, err)
	for _, plugin := range []string{"bridge", "loopback", "host-local", "firewall"} {
		run(t, "mv", filepath.Join(rootless, plugin), filepath.Join(programs, "buildkit-cni-"+plugin))
	}
	return dir
}

// TestDaemonImage builds the image for root, and uses it as those of BuildKit's
// are used.
func TestDaemonImage(t *testing.T) {
	needs(t)
	registry, outside := repository(t), builtOutside(t)
	build := func() (d *daemon, image string) {
		d = startDaemon(t, ours)
		d.bake(t, registry, "image", "--set", "image.contexts.build="+outside)
		return d, registry + "/buildkitd-esgz:latest"
	}
	d, image := build()
	requireEStargz(t, image)
	first := onlyImage(t, image)

	t.Run("attestations", func(t *testing.T) {
		predicates := map[string]string{}
		for _, s := range statements(t, image) {
			predicates[s.PredicateType] = string(s.Predicate)
		}
		require.Contains(t, predicates["https://spdx.dev/Document"], " openssh-client ")
		require.Contains(t, predicates["https://slsa.dev/provenance/v1"], revision)
	})
	t.Run("profile", func(t *testing.T) {
		read := prioritized(t, first)
		require.Contains(t, read[0], "usr/sbin/runc")
		require.NotContains(t, read[0], "usr/bin/git")
		require.Contains(t, strings.Join(read, " "), "usr/bin/buildkitd-esgz")
	})
	t.Run("small", func(t *testing.T) {
		size := int64(0)
		for _, layer := range first.Manifest.Layers {
			size += layer.Size
		}
		t.Logf("%d MB", size/1e6)
		require.Less(t, size, int64(80_000_000))
	})
	require.Equal(t, revision, first.Config.Config.Labels["org.opencontainers.image.revision"])

	p := newPodman(t)
	t.Run("builder", func(t *testing.T) { testBuilder(t, p, image) })
	t.Run("daemonless", func(t *testing.T) {
		// In a network of its own, where the CNI plugins make a bridge.
		testDaemonless(t, p, "--privileged", "--network", "none", "--env", "BUILDKITD_FLAGS=--oci-worker-net=bridge", image)
	})
	t.Run("docker-container", func(t *testing.T) { testDockerContainer(t, d, outside) })
	t.Run("kubernetes driver", func(t *testing.T) {
		testKubernetesDriver(t, image, "requests.cpu=1", "--buildkitd-flags", "--oci-worker-snapshotter=stargz")
	})
	t.Run("kubernetes manifest", func(t *testing.T) {
		name, g := testKubernetesManifest(t, image, "buildkitd.yaml", "statefulsets/buildkitd")
		g.requireLazy(t, name)
	})
	t.Run("git", func(t *testing.T) {
		// Commands of git that are programs of their own, or scripts.
		p.runOnce(t, "--network", "none", "--entrypoint", "sh", image, "-euxc", `
			git init /src && cd /src && git submodule status && git ls-remote /src
			git clone file:///src /clone
			echo >a && git add a && git -c user.name=a -c user.email=a@example.org commit -m a
			git gc && git fsck
			! git ls-remote https://127.0.0.1:1/a 2>/git && grep "Failed to connect" /git
			openssl version && ssh -V && pigz --version && xz --version && iptables --version
			fusermount3 --version && fusermount --version && awk 'BEGIN {}'
		`)
	})
	t.Run("reproducible", func(t *testing.T) {
		_, again := build()
		require.Equal(t, first.Descriptor.Digest, onlyImage(t, again).Descriptor.Digest)
	})
}

// testBuilder does as buildx's docker-container driver: the container gets flags
// only, and is asked with buildctl and buildkitd --version.
func testBuilder(t *testing.T, p *podman, image string) {
	sockets := tempDir(t)
	const id = "builder"
	p.run(t, p.args("run", "--name", id, "--detach", "--privileged", "--network", "host",
		"--volume", sockets+":/run/buildkit", image, "--oci-worker-net=host")...)
	t.Cleanup(func() { p.run(t, "rm", "--force", "--volumes", "--time", "20", id) })
	eventually(t, func() bool { return p.command("exec", id, "buildctl", "debug", "workers").Run() == nil },
		func() string { return p.run(t, "logs", id) })
	require.Regexp(t, `^\S+ \S+ v\d+\.\d+\.\d+\S* \S+\n$`, p.run(t, "exec", id, "buildkitd", "--version"))

	inside := clientsOf(t)
	require.NoError(t, os.Symlink(filepath.Join(sockets, "buildkitd.sock"), filepath.Join(inside.Dir, "buildkitd.sock")))
	inside.createBuilder(t)
	built := repository(t) + "/built:latest"
	inside.build(t, helloImage(t), "--output", estargz(built))
	require.Len(t, requireEStargz(t, built), 4)
}

// testDaemonless builds with buildctl-daemonless.sh, whose standard input and exit
// status are those of buildctl.
func testDaemonless(t *testing.T, p *podman, container ...string) {
	dir := writeFiles(t, map[string]string{"Dockerfile": `
FROM scratch AS busy
COPY busybox /bin/
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN cat /proc/net/dev >/interfaces && id -u >/user
FROM scratch
COPY --from=busy /interfaces /user /
`})
	run(t, "cp", staticBusybox(t), dir)
	run(t, "chmod", "-R", "a+rwX", dir)
	args := append([]string{"--volume", dir + ":/context", "--entrypoint", "buildctl-daemonless.sh"}, container...)
	p.runOnce(t, append(args, "build", "--frontend", "dockerfile.v0",
		"--local", "context=/context", "--local", "dockerfile=/context", "--output", "type=local,dest=/context/out")...)
	user, err := os.ReadFile(filepath.Join(dir, "out", "user"))
	require.NoError(t, err)
	require.Equal(t, "0\n", string(user))
	if strings.Contains(strings.Join(args, " "), "bridge") {
		interfaces, err := os.ReadFile(filepath.Join(dir, "out", "interfaces"))
		require.NoError(t, err)
		require.Contains(t, string(interfaces), "eth0")
	}

	cmd := p.command(p.args("run", append([]string{"--rm", "--interactive"}, append(args, "build")...)...)...)
	cmd.Stdin = strings.NewReader("no definition of a build")
	_, err = output(t, cmd)
	require.ErrorContains(t, err, "exit status 1")
	require.ErrorContains(t, err, "proto")
}

// TestDaemonImageRootless builds the image for a user without rights, and uses it
// as buildx's kubernetes driver does with rootless=true.
func TestDaemonImageRootless(t *testing.T) {
	needs(t)
	registry := repository(t)
	startDaemon(t, ours).bake(t, registry, "image-rootless", "--set", "image-rootless.contexts.build="+builtOutside(t))
	image := registry + "/buildkitd-esgz:latest-rootless"
	requireEStargz(t, image)
	built := onlyImage(t, image)
	require.Equal(t, "1000:1000", built.Config.Config.User)
	require.Contains(t, strings.Join(prioritized(t, built), " "), "usr/bin/rootlesskit")

	p := newPodman(t)
	rights := []string{"--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"}
	alone := append(rights, "--network", "none")
	require.Equal(t, "uid=1000(user) gid=1000(user) groups=1000(user)\n",
		p.runOnce(t, append(alone, "--entrypoint", "id", image)...))
	testDaemonless(t, p, append(alone, "--env", "BUILDKITD_FLAGS=--oci-worker-no-process-sandbox", image)...)

	t.Run("lazy", func(t *testing.T) {
		name := pushLazy(t)
		want := sums(t, shared.address+"/"+name)
		g := newGate(t)
		sockets := tempDir(t)
		require.NoError(t, os.Chown(sockets, 1000, 1000))
		args := append(rights, "--name", "rootless", "--detach", "--network", "host", "--device", "/dev/fuse",
			"--volume", sockets+":/run/user/1000/buildkit", image,
			"--oci-worker-snapshotter=stargz", "--oci-worker-no-process-sandbox", "--oci-worker-net=host")
		p.run(t, p.args("run", args...)...)
		t.Cleanup(func() { p.run(t, "rm", "--force", "--volumes", "--time", "20", "rootless") })
		eventually(t, func() bool { return p.command("exec", "rootless", "buildctl", "debug", "workers").Run() == nil },
			func() string { return p.run(t, "logs", "rootless") })
		inside := clientsOf(t)
		require.NoError(t, os.Symlink(filepath.Join(sockets, "buildkitd.sock"), filepath.Join(inside.Dir, "buildkitd.sock")))
		inside.createBuilder(t)
		require.Equal(t, want, sum(t, inside.build(t, upon(t, g.address+"/"+name, sumAll))))
		g.requireLazy(t, name)
	})
	t.Run("kubernetes driver", func(t *testing.T) {
		testKubernetesDriver(t, image, "rootless=true", "--buildkitd-flags", "--config=/etc/buildkit/buildkitd.toml")
	})
	t.Run("kubernetes manifest", func(t *testing.T) {
		testKubernetesManifest(t, image, "rootless.yaml", "deployments/buildkitd-rootless")
	})
	t.Run("documented", func(t *testing.T) { testDocumented(t, p, "Rootless", image) })
	t.Run("emulators", func(t *testing.T) {
		needsTableOfEmulators(t)
		// The image has none here, but may register them.
		_, err := output(t, p.command(p.args("run", append(alone, "--rm", "--entrypoint", "rootlesskit", image,
			"buildkitd-binfmt", "true")...)...))
		require.ErrorContains(t, err, "no emulators that the kernel can be told of")
	})
}

// testDocumented runs the commands of a section of docs/image.md, with podman for
// docker.
func testDocumented(t *testing.T, p *podman, section, image string) {
	r := newReader(t)
	flags := strings.Join(p.flags, " ")
	// podman takes an engine's logins for its own, which have to exist then.
	docker := "#!/bin/sh\ncase $1 in\nbuildx) shift; exec buildx \"$@\" ;;\nesac\n" +
		"unset DOCKER_CONFIG\ncase $1 in\n" +
		"run) shift; exec podman " + flags + " " + strings.Join(p.args("run", "--network", "host"), " ") + " \"$@\" ;;\n" +
		"*) exec podman " + flags + " \"$@\" ;;\nesac\n"
	require.NoError(t, os.WriteFile(filepath.Join(r.dir, ".docker/docker"), []byte(docker), 0o755))
	run(t, "chmod", "a+rwX", r.dir)
	r.names = strings.NewReplacer("registry.example/buildkitd-esgz", strings.Split(image, ":latest")[0],
		"registry.example/", repository(t)+"/")
	t.Cleanup(func() { p.run(t, "rm", "--force", "--ignore", "--volumes", "--time", "20", "builder") })
	ran := false
	for _, b := range readBlocks(t, "../docs/image.md") {
		if b.section == section {
			r.follow(t, b)
			ran = true
		}
	}
	require.True(t, ran, section)
	require.Len(t, requireEStargz(t, repository(t)+"/app:latest"), 3)
}

// TestDaemonEntrypoint runs the entrypoint as in a container that has the host's
// cgroup namespace: the daemon sees its own group as the root.
func TestDaemonEntrypoint(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{
		"bin/buildkitd":  "#!/bin/sh\necho \"$*\"\nsed -n 's/^0:://p' /proc/self/cgroup\nls -d /sys/fs/cgroup/*/\n",
		"never/unshare":  "#!/bin/sh\nexit 1\n",
		"as-a-container": "#!/bin/sh\nset -eu\nmount -t cgroup2 cgroup2 /sys/fs/cgroup\ngroup=/sys/fs/cgroup/$1\nshift\nmkdir -p $group/below\necho $$ >$group/cgroup.procs\nexec \"$@\"\n",
	})
	run(t, "chmod", "-R", "a+x", dir)
	entrypoint, err := filepath.Abs("../hack/daemon/buildkitd-entrypoint")
	require.NoError(t, err)
	group := filepath.Base(dir)
	start := func(path string) string {
		cmd := exec.Command("unshare", "--mount", filepath.Join(dir, "as-a-container"), group, entrypoint, "--a", "flag")
		cmd.Env = append(os.Environ(), "PATH="+path+":"+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"))
		out, err := output(t, cmd)
		require.NoError(t, err)
		return out
	}
	t.Cleanup(func() {
		run(t, "unshare", "--mount", "sh", "-c",
			"mount -t cgroup2 cgroup2 /sys/fs/cgroup && rmdir /sys/fs/cgroup/"+group+"/below /sys/fs/cgroup/"+group)
	})
	require.Equal(t, "--a flag\n/\n/sys/fs/cgroup/below/\n", start(filepath.Join(dir, "bin")))
	// Where it may not, the daemon starts all the same.
	require.Contains(t, start(filepath.Join(dir, "never")), "--a flag\n/"+group+"\n")
}
