package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/pushed"
)

// What upstream's exporters do besides compressing works with eStargz too.

func TestAttestations(t *testing.T) {
	needs(t)
	image := repository(t) + ":latest"
	startDaemon(t, ours).build(t, helloImage(t), "--output", estargz(image), "--attest", "type=provenance,mode=max")
	ref := resolve(t, image)
	require.Len(t, ref.Images, 1)
	require.Len(t, ref.Attestations, 1)
	requireEStargz(t, image)

	attestation := ref.Attestations[0]
	require.NotEmpty(t, attestation.Manifest.Layers)
	for _, layer := range attestation.Manifest.Layers {
		require.Equal(t, "application/vnd.in-toto+json", layer.MediaType)
		blob, err := attestation.Blob(t.Context(), layer)
		require.NoError(t, err)
		require.True(t, json.Valid(blob), "an attestation is left alone")
	}
}

func TestPlatforms(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{
		"Dockerfile": "FROM scratch\nARG TARGETARCH\nCOPY ${TARGETARCH} /file\nCOPY amd64 /same\n",
		"amd64":      "for amd64", "arm64": "for arm64",
	})
	image := repository(t) + ":latest"
	startDaemon(t, ours).build(t, dir, "--platform", "linux/amd64,linux/arm64", "--output", estargz(image))
	ref := resolve(t, image)
	require.Len(t, ref.Images, 2)
	require.Equal(t, "amd64", ref.Images[0].Config.Architecture)
	require.Equal(t, "arm64", ref.Images[1].Config.Architecture)
	layers := requireEStargz(t, image)
	require.Len(t, layers, 4)
	require.NotEqual(t, layers[0].Descriptor.Digest, layers[2].Descriptor.Digest)
}

func TestNamesAndAnnotations(t *testing.T) {
	needs(t)
	one, two := repository(t)+"/one:latest", repository(t)+"/two:other"
	metadata := filepath.Join(tempDir(t), "metadata.json")
	startDaemon(t, ours).build(t, helloImage(t), "--metadata-file", metadata,
		"--annotation", "manifest:org.example.answer=42",
		"--output", estargz(one, `"name=`+one+","+two+`"`, "annotation.org.example.question=unknown"))
	require.Equal(t, resolve(t, one).Digest, resolve(t, two).Digest)
	requireEStargz(t, two)

	image := onlyImage(t, one)
	require.Equal(t, "42", image.Manifest.Annotations["org.example.answer"])
	require.Equal(t, "unknown", image.Manifest.Annotations["org.example.question"])

	raw, err := os.ReadFile(metadata)
	require.NoError(t, err)
	var answer map[string]any
	require.NoError(t, json.Unmarshal(raw, &answer))
	require.Equal(t, resolve(t, one).Digest.String(), answer["containerimage.digest"])
}

func TestPushByDigest(t *testing.T) {
	needs(t)
	name := repository(t)
	metadata := filepath.Join(tempDir(t), "metadata.json")
	startDaemon(t, ours).build(t, helloImage(t), "--metadata-file", metadata,
		"--output", estargz(name, "push-by-digest=true"))
	raw, err := os.ReadFile(metadata)
	require.NoError(t, err)
	var answer map[string]any
	require.NoError(t, json.Unmarshal(raw, &answer))
	requireEStargz(t, name+"@"+answer["containerimage.digest"].(string))
	_, err = pushed.Resolve(t.Context(), name+":latest")
	require.ErrorContains(t, err, "404", "no tag was asked for")
}

func TestRewriteTimestamp(t *testing.T) {
	needs(t)
	image := repository(t) + ":latest"
	startDaemon(t, ours).build(t, helloImage(t), "--build-arg", "SOURCE_DATE_EPOCH=1234567890",
		"--output", estargz(image, "rewrite-timestamp=true"))
	requireEStargz(t, image)
	config := onlyImage(t, image).Config
	require.Equal(t, int64(1234567890), config.Created.Unix())
	// The times of the files, as containers see them.
	require.Equal(t, "1234567890\n", startContainerd(t).runPlain(t, image, "stat", "-c", "%Y", "/hello"))
}

// The oci exporter writes layouts and tars.
func TestOCILayout(t *testing.T) {
	needs(t)
	layout := filepath.Join(tempDir(t), "layout")
	startDaemon(t, ours).build(t, helloImage(t), "--output",
		"type=oci,tar=false,estargz-profile=none,compression=estargz,force-compression=true,name=it,dest="+layout)
	requireWholeBlobs(t, layout)
	manifest := layoutManifest(t, layout)
	require.Len(t, manifest.Layers, 4)
	var config ocispecs.Image
	readBlob(t, layout, manifest.Config, &config)
	for i, desc := range manifest.Layers {
		blob, err := os.ReadFile(blobFile(layout, desc))
		require.NoError(t, err)
		_, err = pushed.CheckLayer(blob, desc, config.RootFS.DiffIDs[i])
		require.NoError(t, err)
	}
}

// The tars for docker load and its like are read by skopeo, and run by podman.
func TestTars(t *testing.T) {
	needs(t)
	d := startDaemon(t, ours)
	dir := helloImage(t)
	for _, exporter := range []string{"oci", "docker"} {
		t.Run(exporter, func(t *testing.T) {
			tar := filepath.Join(tempDir(t), "it.tar")
			d.build(t, dir, "--output", "type="+exporter+",name=it:latest,dest="+tar+
				",compression=estargz,estargz-profile=none,force-compression=true,oci-mediatypes=true")
			archive := exporter + "-archive:" + tar
			require.Contains(t, run(t, "skopeo", "inspect", archive), `"Architecture": "amd64"`)
			require.Equal(t, "hello\n", runPodman(t, archive))
		})
	}
}

func layoutManifest(t *testing.T, layout string) (m ocispecs.Manifest) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(layout, "index.json"))
	require.NoError(t, err)
	var index ocispecs.Index
	require.NoError(t, json.Unmarshal(raw, &index))
	require.Len(t, index.Manifests, 1)
	readBlob(t, layout, index.Manifests[0], &m)
	return m
}

func readBlob(t *testing.T, layout string, desc ocispecs.Descriptor, v any) {
	t.Helper()
	raw, err := os.ReadFile(blobFile(layout, desc))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(raw, v))
}

func blobFile(layout string, desc ocispecs.Descriptor) string {
	return filepath.Join(layout, "blobs", "sha256", desc.Digest.Encoded())
}

// A layer without a single file is a layer all the same.
func TestEmptyLayer(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{"Dockerfile": `
FROM ` + busybox(t) + `
RUN true
WORKDIR /
RUN echo hello >/hello
`})
	image := repository(t) + ":latest"
	startDaemon(t, ours).build(t, dir, "--output", estargz(image))
	layers := requireEStargz(t, image)
	require.True(t, slices.ContainsFunc(layers, func(l *pushed.Layer) bool { return l.Entries == 0 }), "no layer is empty")
	peer := startContainerd(t)
	require.Equal(t, "hello\n", peer.runPlain(t, image, "cat", "/hello"))
	require.Equal(t, "hello\n", peer.runLazily(t, image, "cat", "/hello"))
}

// Without force-compression, layers that come from a registry stay as they are.
func TestBaseStaysAsItIs(t *testing.T) {
	needs(t)
	base := onlyImage(t, busybox(t))
	image := repository(t) + ":latest"
	startDaemon(t, ours).build(t, helloImage(t), "--output",
		"type=image,push=true,oci-mediatypes=true,compression=estargz,estargz-profile=none,name="+image)
	layers := onlyImage(t, image).Manifest.Layers
	require.Len(t, layers, 4)
	for i, layer := range base.Manifest.Layers {
		require.Equal(t, layer.Digest, layers[i].Digest)
	}
	for _, layer := range layers[len(base.Manifest.Layers):] {
		require.NotEmpty(t, layer.Annotations["containerd.io/snapshot/stargz/toc.digest"])
	}
}

// An image of ours is a base as any other: its layers are reused, lazy or not.
func TestEStargzBase(t *testing.T) {
	needs(t)
	base := repository(t) + ":base"
	startDaemon(t, ours).build(t, helloImage(t), "--output", estargz(base))
	dir := writeFiles(t, map[string]string{"Dockerfile": "FROM " + base + "\nRUN cat /hello >/twice\n"})
	image := repository(t) + ":latest"
	// Another daemon, which knows the base from the registry alone.
	startDaemon(t, ours).build(t, dir, "--output", estargz(image))
	layers, baseLayers := requireEStargz(t, image), requireEStargz(t, base)
	require.Len(t, layers, len(baseLayers)+1)
	for i, layer := range baseLayers {
		require.Equal(t, layer.Descriptor.Digest, layers[i].Descriptor.Digest, "layer %d of the base", i)
	}
}

// Nobody unpacks a base that is eStargz already and that no step reads, so nobody
// pulls it either, forced compression or not.
func TestEStargzBaseIsNotPulled(t *testing.T) {
	needs(t)
	name := repositoryName(t)
	startDaemon(t, ours).build(t, helloImage(t), "--output", estargz(registry(t)+"/"+name+":base"))

	p := countingProxy(t)
	image := p.address + "/" + name
	dir := writeFiles(t, map[string]string{"Dockerfile": "FROM " + image + ":base\nLABEL is=derived\n"})
	startDaemon(t, ours).build(t, dir, "--output", estargz(image+":derived"))
	var size int64
	for _, layer := range requireEStargz(t, registry(t)+"/"+name+":derived") {
		size += layer.Descriptor.Size
	}
	// The image's config is a blob too.
	require.Less(t, p.bytes.Load(), size/10, "bytes read of a base of %d", size)
}

func resolve(t *testing.T, image string) *pushed.Reference {
	t.Helper()
	ref, err := pushed.Resolve(t.Context(), image)
	require.NoError(t, err)
	return ref
}
