package integration

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/pushed"
)

// hardImage has three layers on top of busybox, with everything in them that
// archives get wrong. Two builds of it have the same files, times included.
func hardImage(t *testing.T) string {
	return writeFiles(t, map[string]string{"Dockerfile": `
FROM ` + busybox(t) + `
RUN hardfiles lower /hard
RUN hardfiles upper /hard
RUN hardfiles random /hard/change/opaque/newer 100000 7 && rm -r /hard/change/file-to-dir /hard/links/below && \
    touch -d @1700000000 /hard/change /hard/links
CMD ["hardfiles", "manifest", "/hard", "/bin"]
`})
}

// Every reader of the image must see the files that it sees in an uncompressed
// image that the stock daemon made of the same input.
func TestSameFilesAsUncompressed(t *testing.T) {
	needs(t)
	dir := hardImage(t)
	image, plain := repository(t)+":estargz", repository(t)+":uncompressed"
	startDaemon(t, ours).build(t, dir, "--output", estargz(image))
	startDaemon(t, stock).build(t, dir,
		"--output", "type=image,push=true,oci-mediatypes=true,compression=uncompressed,force-compression=true,name="+plain)

	requireEStargz(t, image)
	t.Run("tar of each layer", func(t *testing.T) { requireSameTars(t, plain, image) })
	t.Run("containerd", func(t *testing.T) {
		peer := startContainerd(t)
		truth := peer.runPlain(t, plain)
		requireHard(t, truth)
		requireSame(t, truth, peer.runPlain(t, image))
		// containerd's unpacking takes 1970 for all that is older.
		const old = "time-before-1970"
		requireSame(t, without(truth, old), without(peer.runLazily(t, image), old))
	})
	t.Run("podman", func(t *testing.T) { requireSame(t, runPodman(t, plain), runPodman(t, image)) })
	t.Run("umoci", func(t *testing.T) { requireSame(t, unpacked(t, plain), unpacked(t, image)) })
}

// requireHard makes sure that what was compared is worth it.
func requireHard(t *testing.T, manifest string) {
	t.Helper()
	for _, part := range []string{
		"hard/chunks", "security.capability=", "owner=3000000:4000000", "mtime=7258118400", "device=7:300",
		`link="hard/links/a"`, "/file", "hard/change/opaque/newer", "hard/change/has-new-name",
	} {
		require.True(t, strings.Contains(manifest, part), "%s is not in the image", part)
	}
	for _, part := range []string{"hard/change/deleted", "hard/change/opaque/old", "hard/links/below/"} {
		require.False(t, strings.Contains(manifest, part), "%s is in the image", part)
	}
}

// requireSameTars compares the layers of an uncompressed image to what the
// stock library unpacks from those of an eStargz image.
func requireSameTars(t *testing.T, plain, image string) {
	t.Helper()
	want, got := onlyImage(t, plain), onlyImage(t, image)
	require.Len(t, got.Manifest.Layers, len(want.Manifest.Layers))
	for i := range want.Manifest.Layers {
		tar, err := want.Blob(t.Context(), want.Manifest.Layers[i])
		require.NoError(t, err)
		blob, err := got.Blob(t.Context(), got.Manifest.Layers[i])
		require.NoError(t, err)
		unpacked, err := pushed.Unpack(blob)
		require.NoError(t, err)
		require.True(t, bytes.Equal(tar, unpacked), "layer %d is another tar: %d bytes, uncompressed %d", i, len(unpacked), len(tar))
	}
}

func onlyImage(t *testing.T, ref string) *pushed.Image {
	t.Helper()
	r, err := pushed.Resolve(t.Context(), ref)
	require.NoError(t, err)
	require.Len(t, r.Images, 1)
	return r.Images[0]
}

// requireEStargz checks every layer of every image with the stock library.
func requireEStargz(t *testing.T, image string) []*pushed.Layer {
	t.Helper()
	ref, err := pushed.Resolve(t.Context(), image)
	require.NoError(t, err)
	require.NotEmpty(t, ref.Images)
	var all []*pushed.Layer
	for _, im := range ref.Images {
		layers, err := im.CheckEStargz(t.Context())
		require.NoError(t, err)
		require.NotEmpty(t, layers)
		all = append(all, layers...)
	}
	return all
}

// requireSame compares line by line, which makes the report readable. The order
// does not count, how often a line is there does.
func requireSame(t *testing.T, want, got string) {
	t.Helper()
	missing := map[string]int{}
	for line := range strings.Lines(want) {
		missing[line]++
	}
	require.NotEmpty(t, missing)
	for line := range strings.Lines(got) {
		missing[line]--
	}
	for line, n := range missing {
		switch {
		case n > 0:
			t.Errorf("missing %d times:    %s", n, line)
		case n < 0:
			t.Errorf("unexpected %d times: %s", -n, line)
		}
	}
}

func without(manifest, part string) string {
	var b strings.Builder
	for line := range strings.Lines(manifest) {
		if !strings.Contains(line, part) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// unpacked copies an image with skopeo, unpacks it with umoci, and says what is
// in it.
func unpacked(t *testing.T, image string) string {
	t.Helper()
	dir := tempDir(t)
	layout, rootfs := filepath.Join(dir, "oci")+":it", filepath.Join(dir, "rootfs")
	run(t, "skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", "docker://"+image, "oci:"+layout)
	run(t, "umoci", "raw", "unpack", "--image", layout, rootfs)
	return run(t, hardfiles(t), "manifest", "-root", rootfs, "hard", "bin")
}

// The stock snapshotter must mount the image, and read of a large file only
// what the command asks for.
func TestLazyPull(t *testing.T) {
	needs(t)
	const large = 32 << 20
	dir := writeFiles(t, map[string]string{"Dockerfile": `
FROM ` + busybox(t) + `
RUN hardfiles random /large 33554432 1
RUN echo hello >/small
`})
	name := repositoryName(t)
	startDaemon(t, ours).build(t, dir, "--output", estargz(registry(t)+"/"+name+":latest"))

	p := countingProxy(t)
	peer := startContainerd(t)
	image := p.address + "/" + name + ":latest"
	require.Equal(t, "hello\n", peer.runLazily(t, image, "cat", "/small"))
	peer.requireMounts(t, 4)
	require.Positive(t, p.bytes.Load())
	require.Less(t, p.bytes.Load(), int64(large/4), "bytes read of an image with a file of %d", large)

	require.Equal(t, "33554432\n", peer.ctr(t, "run", "--rm", "--snapshotter", "stargz", image, "all", "sh", "-c", "cat /large | wc -c"))
	require.Greater(t, p.bytes.Load(), int64(large/2), "reading all of the file must fetch it")
}

// The stock snapshotter reads files that share a member.
func TestLazyPullSharedMembers(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{"Dockerfile": `
FROM ` + busybox(t) + `
RUN mkdir /many && for n in $(seq 200); do echo "file $n" >/many/$n; done
`})
	image := registry(t) + "/" + repositoryName(t) + ":latest"
	startDaemon(t, ours).build(t, dir, "--output", estargz(image, "estargz-min-chunk-size=65536"))

	ref, err := pushed.Resolve(t.Context(), image)
	require.NoError(t, err)
	_, err = ref.Images[0].CheckEStargz(t.Context())
	require.ErrorContains(t, err, "found twice", "the stock library's check refuses shared members; without that there are none")

	var want strings.Builder
	for n := 200; n > 0; n-- {
		fmt.Fprintln(&want, "file", n)
	}
	peer := startContainerd(t)
	require.Equal(t, want.String(), peer.runLazily(t, image, "sh", "-c", "for n in $(seq 200 -1 1); do cat /many/$n; done"))
	peer.requireMounts(t, 3)
}

// A name that is not UTF-8 has no place in a TOC, which is JSON. Such a layer is
// refused with the name and a reason, and can be had as gzip.
func TestNameNotUTF8(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{"Dockerfile": `
FROM ` + busybox(t) + `
RUN touch "$(printf 'latin1-\351')"
`})
	d := startDaemon(t, ours)
	_, err := d.tryBuild(t, dir, "--output", estargz(repository(t)))
	require.ErrorContains(t, err, `latin1-\xe9`)
	require.ErrorContains(t, err, "UTF-8")
	d.build(t, dir, "--output", "type=image,push=true,compression=gzip,name="+repository(t))
}

// Files that are named like the format's own entries are files all the same, to
// those who know nothing of the format.
func TestReservedNames(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{"Dockerfile": `
FROM ` + busybox(t) + `
RUN for name in stargz.index.json .prefetch.landmark .no.prefetch.landmark; do echo my $name >/$name; done
`})
	image := repository(t) + ":latest"
	startDaemon(t, ours).build(t, dir, "--output", estargz(image))
	requireEStargz(t, image)
	require.Equal(t, "my stargz.index.json\nmy .prefetch.landmark\nmy .no.prefetch.landmark\n",
		startContainerd(t).runPlain(t, image, "cat", "/stargz.index.json", "/.prefetch.landmark", "/.no.prefetch.landmark"))
}
