package integration

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/pushed"
)

// Another daemon with an empty root takes all steps from the cache that this one
// left in the registry or in the image.
func TestCache(t *testing.T) {
	needs(t)
	for _, c := range []struct{ name, to, from string }{
		{"registry", "type=registry,mode=max,compression=estargz,force-compression=true,oci-mediatypes=true,image-manifest=true,ref=REF-cache", "type=registry,ref=REF-cache"},
		{"inline", "type=inline", "type=registry,ref=REF"},
		{"registry gzip", "type=registry,mode=max,ref=REF-cache", "type=registry,ref=REF-cache"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := helloImage(t)
			image := repository(t) + ":latest"
			cache := func(s string) string { return strings.ReplaceAll(s, "REF", image) }
			startDaemon(t, ours).build(t, dir, "--output", estargz(image), "--cache-to", cache(c.to))
			first := requireEStargz(t, image)

			p := startDaemon(t, ours).build(t, dir, "--output", estargz(image+"-again"), "--cache-from", cache(c.from))
			requireCached(t, p)
			again := requireEStargz(t, image+"-again")
			for i := range first {
				require.Equal(t, first[i].Descriptor.Digest, again[i].Descriptor.Digest, "layer %d", i)
			}
		})
	}
}

// requireCached: no step was built. A base is looked up each time.
func requireCached(t *testing.T, p *progress) {
	t.Helper()
	steps := p.steps()
	require.NotEmpty(t, steps)
	for _, v := range steps {
		require.True(t, v.Cached || strings.Contains(v.Name, "] FROM "), "%s was not cached:\n%s", v.Name, p.text())
	}
}

func TestCacheLayersAreEStargz(t *testing.T) {
	needs(t)
	cache := repository(t) + ":cache"
	startDaemon(t, ours).build(t, helloImage(t), "--output", "type=cacheonly", "--cache-to",
		"type=registry,mode=max,compression=estargz,force-compression=true,oci-mediatypes=true,image-manifest=true,ref="+cache)
	image := onlyImage(t, cache)
	require.Len(t, image.Manifest.Layers, 4)
	for _, desc := range image.Manifest.Layers {
		blob, err := image.Blob(t.Context(), desc)
		require.NoError(t, err)
		_, err = pushed.CheckLayer(blob, desc, "")
		require.NoError(t, err)
	}
}

// A cache in a directory, as CI systems keep it.
func TestLocalCache(t *testing.T) {
	needs(t)
	dir, cache := helloImage(t), tempDir(t)
	startDaemon(t, ours).build(t, dir, "--output", "type=cacheonly",
		"--cache-to", "type=local,mode=max,compression=estargz,force-compression=true,dest="+cache)
	requireWholeBlobs(t, cache)
	manifest := layoutManifest(t, cache)
	require.Len(t, manifest.Layers, 4)
	for _, desc := range manifest.Layers {
		blob, err := os.ReadFile(blobFile(cache, desc))
		require.NoError(t, err)
		_, err = pushed.CheckLayer(blob, desc, "")
		require.NoError(t, err)
	}
	requireCached(t, startDaemon(t, ours).build(t, dir, "--output", estargz(repository(t)), "--cache-from", "type=local,src="+cache))
}
