package integration

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// maxCache is the --cache-to that takes everything along, profiles as well.
func maxCache(ref string) string {
	return "type=registry,mode=max,compression=estargz,force-compression=true,oci-mediatypes=true,image-manifest=true,ref=" + ref
}

// Another builder takes profile, order and digest from the remote cache, whatever
// the layers are compressed with there.
func TestProfileFromCache(t *testing.T) {
	needs(t)
	dir, image := readerImage(t, ""), repository(t)+":latest"
	first := startDaemon(t, ours)
	for name, cache := range map[string]string{
		"estargz": maxCache(image + "-cache-estargz"),
		"gzip":    "type=registry,mode=max,ref=" + image + "-cache-gzip",
	} {
		t.Run(name, func(t *testing.T) {
			first.build(t, dir, "--output", profiled(image), "--cache-to", cache)
			p := startDaemon(t, ours).build(t, dir, "--output", profiled(image+"-again"), "--cache-from", "type=registry,ref="+image+"-cache-"+name)
			requireCached(t, p)
			_, cached := profileStep(t, p)
			require.True(t, cached, p.text())
			require.Equal(t, resolve(t, image).Digest, resolve(t, image+"-again").Digest)
			requireRead(t, image+"-again", wantRead)
		})
	}
}

// A cache that holds the layers of the image alone has no place for a profile.
// The steps are found there, the entrypoint runs again and the image is the
// same. Steps that are the workload run again as well.
func TestProfileFromSmallCache(t *testing.T) {
	needs(t)
	first, dir := startDaemon(t, ours), dataImage(t)
	for _, c := range []struct{ name, workload, to, from string }{
		{"inline", "entrypoint", "type=inline", "type=registry,ref=REF"},
		{"inline, steps", "run", "type=inline", "type=registry,ref=REF"},
		{"min", "entrypoint", "type=registry,mode=min,ref=REF-cache", "type=registry,ref=REF-cache"},
		{"min, steps", "run", "type=registry,mode=min,ref=REF-cache", "type=registry,ref=REF-cache"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := repository(t) + ":latest"
			build := func(d *daemon, tag string, more ...string) *progress {
				out := profiled(tag, reproducible, "estargz-profile="+c.workload)
				return d.build(t, dir, append(more, "--build-arg", "SOURCE_DATE_EPOCH=1750000000", "--output", out)...)
			}
			build(first, image, "--cache-to", strings.ReplaceAll(c.to, "REF", image))
			p := build(startDaemon(t, ours), image+"-again", "--cache-from", strings.ReplaceAll(c.from, "REF", image))
			if c.workload == "entrypoint" {
				requireStepsCached(t, p)
				_, cached := profileStep(t, p)
				require.False(t, cached)
			}
			require.Equal(t, onlyImage(t, image).Manifest.Layers, onlyImage(t, image+"-again").Manifest.Layers)
			requireEStargz(t, image+"-again")
		})
	}
}

// requireStepsCached: no instruction of the Dockerfile was run.
func requireStepsCached(t *testing.T, p *progress) {
	t.Helper()
	for _, v := range p.steps() {
		if !strings.HasPrefix(v.Name, "[profile ") {
			require.True(t, v.Cached || strings.Contains(v.Name, "] FROM "), "%s was not cached:\n%s", v.Name, p.text())
		}
	}
}
