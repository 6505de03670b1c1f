package integration

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// reproducible makes an output whose digests depend on the input alone.
const reproducible = "rewrite-timestamp=true"

// The same build gives the same image on one core, on all of them, and again
// from an empty root.
func TestSameDigestsEverywhere(t *testing.T) {
	needs(t)
	dir := hardImage(t)
	build := func(tag string, env ...string) string {
		image := repository(t) + ":" + tag
		startDaemonEnv(t, ours, env).build(t, dir, "--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=1750000000",
			"--output", estargz(image, reproducible))
		requireEStargz(t, image)
		return onlyImage(t, image).Descriptor.Digest.String()
	}
	all := build("all-cores")
	require.Equal(t, all, build("one-core", "GOMAXPROCS=1"), "on one core")
	require.Equal(t, all, build("again"), "from an empty root")
	require.Equal(t, all, build("many", "GOMAXPROCS=16"), "with sixteen threads")
}

// All that is not eStargz is left to BuildKit, and comes out as from the stock
// daemon.
func TestSameDigestsAsStock(t *testing.T) {
	needs(t)
	dir := hardImage(t)
	daemons := map[string]*daemon{"ours": startDaemon(t, ours), "stock": startDaemon(t, stock)}
	for _, attributes := range []string{
		"compression=gzip",
		"compression=gzip,compression-level=9,force-compression=true",
		"compression=zstd",
		"compression=zstd,compression-level=3,force-compression=true,oci-mediatypes=true",
		"compression=uncompressed,force-compression=true,oci-mediatypes=true",
		"oci-mediatypes=true",
		"oci-mediatypes=false",
	} {
		t.Run(attributes, func(t *testing.T) {
			digests := map[string]string{}
			for name, d := range daemons {
				image := repository(t) + ":" + name
				d.build(t, dir, "--build-arg", "SOURCE_DATE_EPOCH=1750000000",
					"--output", "type=image,push=true,"+reproducible+","+attributes+",name="+image)
				digests[name] = onlyImage(t, image).Descriptor.Digest.String()
			}
			require.Equal(t, digests["stock"], digests["ours"])
		})
	}
}
