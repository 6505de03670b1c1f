package integration

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// Every worker and snapshotter that BuildKit has builds on an eStargz base and
// writes eStargz.
func TestWorkers(t *testing.T) {
	needs(t)
	name := repositoryName(t) + ":base"
	startDaemon(t, ours).build(t, helloImage(t), "--output", estargz(registry(t)+"/"+name))

	for _, w := range []struct {
		name  string
		flags func(t *testing.T) []string
	}{
		{"overlayfs", func(*testing.T) []string { return []string{"--oci-worker-snapshotter=overlayfs"} }},
		{"native", func(*testing.T) []string { return []string{"--oci-worker-snapshotter=native"} }},
		{"stargz", func(*testing.T) []string { return []string{"--oci-worker-snapshotter=stargz"} }},
		{"proxy", func(t *testing.T) []string {
			return []string{"--oci-worker-snapshotter=stargz", "--oci-worker-proxy-snapshotter-path=" + startStargzSnapshotter(t, tempDir(t))}
		}},
		{"containerd", func(t *testing.T) []string {
			return []string{"--oci-worker=false", "--containerd-worker=true", "--containerd-worker-net=host",
				"--containerd-worker-addr=" + startContainerd(t).Address}
		}},
	} {
		t.Run(w.name, func(t *testing.T) {
			image, g := repository(t)+":latest", newGate(t)
			g.open = w.name == "proxy" // the stock snapshotter has no sessions
			dir := writeFiles(t, map[string]string{"Dockerfile": "FROM " + g.address + "/" + name + "\nRUN cat /hello /hello >/twice && rm /random\n"})
			startDaemon(t, ours, w.flags(t)...).build(t, dir, "--output", estargz(image))
			if w.name == "stargz" || w.name == "proxy" {
				g.requireLazy(t, name)
			}
			require.Len(t, requireEStargz(t, image), 5)
			require.Equal(t, "hello\nhello\n", startContainerd(t).runPlain(t, image, "cat", "/twice"))
		})
	}
}

// With the stargz snapshotter, a step reads of its base what it needs.
func TestLazyBase(t *testing.T) {
	needs(t)
	const large = 32 << 20
	name := repositoryName(t)
	d := startDaemon(t, ours)
	d.build(t, writeFiles(t, map[string]string{"Dockerfile": "FROM " + busybox(t) + "\nRUN hardfiles random /large 33554432 1\n"}),
		"--output", estargz(registry(t)+"/"+name+":base"))

	g := newGate(t)
	image := g.address + "/" + name
	dir := writeFiles(t, map[string]string{"Dockerfile": "FROM " + image + ":base\nRUN echo hello >/hello\n"})
	startLazy(t, onDemand).build(t, dir, "--output", estargz(image+":latest"))
	require.Less(t, g.bytes(), int64(large/4), "bytes read of a base with a file of %d", large)
	g.requireLazy(t, name+":base")
	requireEStargz(t, registry(t)+"/"+name+":latest")
}

func startStargzSnapshotter(t *testing.T, dir string, flags ...string) (socket string) {
	t.Helper()
	p, socket, err := harness.StartSnapshotter(t.Context(), bin, dir, flags...)
	serve(t, p, err)
	return socket
}
