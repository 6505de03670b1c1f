package integration

import (
	"archive/tar"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/pushed"
)

// A rootless daemon builds what stock BuildKit builds as one, and its base layers
// are lazy. It can record nothing, and the build says why, once.
func TestUserNamespace(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	base, want := registry(t)+"/"+name, sums(t, registry(t)+"/"+name)
	// RootlessKit maps the subordinate IDs of a user.
	ids := syscall.SysProcIDMap{HostID: 100_000, Size: 65_536}
	dockerfile := "\nRUN " + sumAll + "\nCMD [\"cat\", \"/small/1\"]\n"
	for _, flags := range []string{"overlayfs", "native", "stargz"} {
		t.Run("stock "+flags, func(t *testing.T) {
			d := startInUserNamespace(t, stock, ids, "--oci-worker-snapshotter="+flags)
			p := d.build(t, writeFiles(t, map[string]string{"Dockerfile": "FROM " + base + dockerfile}))
			require.Equal(t, want, sum(t, p))
		})
	}
	for _, c := range []struct {
		flags  string
		reason string
	}{
		{"overlayfs", "rootless"},
		{"native", "plain directory"},
		{"stargz", "rootless"},
		{"stargz --oci-worker-no-process-sandbox", "rootless"},
	} {
		t.Run(c.flags, func(t *testing.T) {
			d := startInUserNamespace(t, ours, ids, strings.Fields("--oci-worker-snapshotter="+c.flags)...)
			g, image := newGate(t), repository(t)+":latest"
			build := func(dockerfile string) *progress {
				dir := writeFiles(t, map[string]string{"Dockerfile": "FROM " + g.address + "/" + name + dockerfile})
				return d.build(t, dir, "--output", profiled(image, "estargz-profile=entrypoint+run"))
			}
			p := build(dockerfile)
			require.Equal(t, want, sum(t, p))
			requireNotRecorded(t, p, image, c.reason)
			if !strings.Contains(c.flags, "stargz") {
				return
			}
			g.requireLazy(t, name)
			// What was mounted is gone with the namespace.
			d.Kill()
			d.start(t)
			require.Equal(t, want, sum(t, build("\nRUN echo again; "+sumAll+"\n")))
			g.requireLazy(t, name)
		})
	}
	t.Run("hard files", func(t *testing.T) {
		name := repositoryName(t) + ":latest"
		startDaemon(t, ours).build(t, hardImage(t), "--output", estargz(registry(t)+"/"+name))
		g := newGate(t)
		dir := upon(t, g.address+"/"+name, "hardfiles manifest /hard /bin")
		truth := startLazy(t, "").build(t, dir).logs.String()
		requireHard(t, truth)
		inside := startInUserNamespace(t, ours, ids, "--oci-worker-snapshotter=stargz").build(t, dir).logs.String()
		const unmapped = "owned-large" // by an ID that the namespace does not have
		requireSame(t, without(truth, unmapped), without(inside, unmapped))
		g.requireLazy(t, name)
	})
	// Overlays of a user namespace look for other xattrs of opaque directories.
	t.Run("opaque directory", func(t *testing.T) {
		image := repositoryName(t)
		pushOpaque(t, registry(t)+"/"+image+":gzip")
		startDaemon(t, ours).build(t, from(t, registry(t)+"/"+image+":gzip"), "--output", estargz(registry(t)+"/"+image))
		g := newGate(t)
		p := startInUserNamespace(t, ours, ids, "--oci-worker-snapshotter=stargz").build(t, upon(t, g.address+"/"+image, `["/bin/busybox", "ls", "/dir"]`))
		require.Equal(t, "new\n", p.logs.String())
		g.requireLazy(t, image)
	})
	// runc needs more than one ID, so that there are no RUN steps with one.
	t.Run("one ID", func(t *testing.T) {
		d := startInUserNamespace(t, ours, syscall.SysProcIDMap{Size: 1}, "--oci-worker-snapshotter=stargz")
		g, image := newGate(t), repository(t)+":latest"
		dir := writeFiles(t, map[string]string{"Dockerfile": "FROM " + g.address + "/" + name + "\nCOPY new /\nCMD [\"cat\", \"/new\"]\n", "new": "new\n"})
		requireNotRecorded(t, d.build(t, dir, "--output", profiled(image)), image, "rootless")
		g.requireLazy(t, name)
	})
}

// pushOpaque pushes an image whose upper layer hides a file of the lower one by
// making the directory opaque.
func pushOpaque(t *testing.T, image string) {
	t.Helper()
	dir := tarEntry{tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755}, nil}
	in := func(name string) tarEntry {
		return tarEntry{tar.Header{Name: "dir/" + name, Typeflag: tar.TypeReg, Mode: 0o644}, nil}
	}
	var layers []pushed.Blob
	for _, layer := range [][]byte{foreignTar(t), tarOf(t, dir, in("old")), tarOf(t, dir, in(".wh..wh..opq"), in("new"))} {
		layers = append(layers, pushed.Blob{
			Descriptor: ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip},
			Bytes:      gzipOf(t, layer), DiffID: digest.FromBytes(layer),
		})
	}
	config := ocispecs.Image{Platform: ocispecs.Platform{OS: "linux", Architecture: "amd64"}}
	require.NoError(t, pushed.Push(t.Context(), image, ocispecs.MediaTypeImageManifest, config, layers))
}

// requireNotRecorded: the build says once why nothing was recorded, and its layers
// are eStargz in their own order.
func requireNotRecorded(t *testing.T, p *progress, image, reason string) {
	t.Helper()
	require.Len(t, p.warnings, 1)
	require.Contains(t, p.warnings[0], reason)
	for _, v := range p.vertexes {
		require.Empty(t, v.Error, v.Name)
	}
	requireEStargz(t, image)
	require.Empty(t, slices.DeleteFunc(prioritized(t, onlyImage(t, image)), func(layer string) bool { return layer == "no landmark" }))
}

// startInUserNamespace starts a daemon as root of a user namespace. Its mounts are
// seen nowhere else, and end with it.
func startInUserNamespace(t *testing.T, binary string, ids syscall.SysProcIDMap, flags ...string) *daemon {
	t.Helper()
	maps := []syscall.SysProcIDMap{ids}
	d := clientsOf(t)
	d.Binary, d.Flags = binary, flags
	d.Attr = syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: maps, GidMappings: maps, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{},
	}
	own := []string{d.Dir, filepath.Join(d.Dir, "run"), filepath.Join(d.Dir, "tmp")}
	for _, dir := range own {
		require.NoError(t, os.MkdirAll(dir, 0o700))
		require.NoError(t, os.Chown(dir, ids.HostID, ids.HostID))
	}
	d.Env = []string{"USER=builder", "HOME=" + d.Dir, "XDG_RUNTIME_DIR=" + own[1]}
	d.start(t)
	d.createBuilder(t)
	return d
}
