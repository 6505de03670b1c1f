package integration

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What cannot work is refused before the build starts, by name.
func TestBadAttributes(t *testing.T) {
	needs(t)
	dir := helloImage(t)
	d := startDaemon(t, ours)
	for _, c := range []struct{ name, attributes, named string }{
		{"unknown", "compression=estargz,estargz-chonk-size=1", "estargz-chonk-size"},
		{"unknown without estargz", "compression=gzip,estargz-chonk-size=1", "estargz-chonk-size"},
		{"no number", "compression=estargz,estargz-chunk-size=many", "estargz-chunk-size"},
		{"no bytes", "compression=estargz,estargz-chunk-size=0", "estargz-chunk-size"},
		{"negative", "compression=estargz,estargz-chunk-size=-1", "estargz-chunk-size"},
		{"negative minimum", "compression=estargz,estargz-min-chunk-size=-1", "estargz-min-chunk-size"},
		{"no annotations", "compression=estargz,oci-mediatypes=false", "oci-mediatypes"},
		{"bad level", "compression=estargz,compression-level=99", "compression-level"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // buildx waits five seconds after such an error
			p, err := d.tryBuild(t, dir, "--output", "type=image,push=true,name="+repository(t)+","+c.attributes)
			require.ErrorContains(t, err, c.named)
			require.Empty(t, p.vertexes, "steps ran before the error")
		})
	}
	t.Run("several exporters", func(t *testing.T) {
		t.Parallel()
		p, err := d.tryBuild(t, dir, "--output", estargz(repository(t)),
			"--output", "type=oci,dest="+tempDir(t)+"/oci.tar,compression=estargz,estargz-chunk-size=many")
		require.ErrorContains(t, err, "estargz-chunk-size")
		require.Empty(t, p.vertexes, "steps ran before the error")
	})
	t.Run("good", func(t *testing.T) {
		t.Parallel()
		d.build(t, dir, "--output", estargz(repository(t), "estargz-chunk-size=1MiB", "estargz-min-chunk-size=4096"))
	})
}

// Smaller chunks are more of them.
func TestChunkSize(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{"Dockerfile": `
FROM ` + busybox(t) + `
RUN hardfiles random /large 4000000 1
`})
	d := startDaemon(t, ours)
	for size, want := range map[string]int{"1MiB": 4, "500000": 8, "4MiB": 1} {
		image := repository(t) + ":" + size
		d.build(t, dir, "--output", estargz(image, "estargz-chunk-size="+size))
		layers := requireEStargz(t, image)
		require.Equal(t, want, layers[len(layers)-1].Chunks, "chunks of %s", size)
	}
}
