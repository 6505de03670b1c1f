package integration

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

// All that a build can be asked for besides its image, at once. Nothing of it
// changes the image, and all of it is about the ordered one.
func TestProfileAndEverythingElse(t *testing.T) {
	needs(t)
	dir, scanner := dataImage(t), scannerImage(t)
	build := func(tag string) string {
		image := repository(t) + ":" + tag
		startDaemon(t, ours).build(t, dir, "--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=1750000000",
			"--attest", "type=provenance,mode=max", "--attest", "type=sbom,generator="+scanner,
			"--cache-to", "type=inline", "--cache-to", maxCache(image+"-cache"),
			"--output", profiled(image, reproducible))
		requireRead(t, image, wantDataRead)
		return image
	}
	image := build("one")

	t.Run("attestations", func(t *testing.T) {
		subject := onlyImage(t, image).Descriptor.Digest.Encoded()
		predicates := map[string]json.RawMessage{}
		for _, s := range statements(t, image) {
			require.Len(t, s.Subject, 1)
			require.Equal(t, subject, s.Subject[0].Digest["sha256"])
			predicates[s.PredicateType] = s.Predicate
		}
		require.Len(t, predicates, 2)
		require.Contains(t, string(predicates["https://slsa.dev/provenance/v1"]), "etc/passwd")
		require.Contains(t, string(predicates["https://spdx.dev/Document"]), "crash")
	})
	t.Run("reproducible", func(t *testing.T) {
		require.Equal(t, onlyImage(t, image).Descriptor.Digest, onlyImage(t, build("two")).Descriptor.Digest)
	})
	for _, from := range []string{"", "-cache"} {
		t.Run("cache "+from, func(t *testing.T) {
			again := image + "-from" + from
			p := startDaemon(t, ours).build(t, dir, "--build-arg", "SOURCE_DATE_EPOCH=1750000000",
				"--cache-from", "type=registry,ref="+image+from, "--output", profiled(again, reproducible))
			requireStepsCached(t, p)
			_, cached := profileStep(t, p)
			require.Equal(t, from != "", cached, "an image has no place for the profile")
			require.Equal(t, onlyImage(t, image).Manifest.Layers, onlyImage(t, again).Manifest.Layers)
		})
	}
}

// A statement is what an attestation says.
type statement struct {
	PredicateType string
	Subject       []struct{ Digest map[string]string }
	Predicate     json.RawMessage
}

func statements(t *testing.T, image string) (all []statement) {
	t.Helper()
	for _, attestation := range resolve(t, image).Attestations {
		for _, desc := range attestation.Manifest.Layers {
			blob, err := attestation.Blob(t.Context(), desc)
			require.NoError(t, err)
			var s statement
			require.NoError(t, json.Unmarshal(blob, &s))
			all = append(all, s)
		}
	}
	return all
}

// scannerImage makes an SBOM of the names in the root directory and of the
// packages, in the way that BuildKit asks for one.
func scannerImage(t *testing.T) string {
	t.Helper()
	from := busybox(t)
	return base(t, "scanner", func(d *daemon, name string) {
		dir := writeFiles(t, map[string]string{
			"Dockerfile": "FROM " + from + "\nCOPY scan.sh /\nENTRYPOINT [\"sh\", \"/scan.sh\"]\n",
			"scan.sh": `
cat >$BUILDKIT_SCAN_DESTINATION/sbom.spdx.json <<END
{"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://spdx.dev/Document",
 "predicate": {"spdxVersion": "SPDX-2.3", "name": "$(cd $BUILDKIT_SCAN_SOURCE && ls . var/lib/dpkg/status.d | tr '\n' ' ')"}}
END
`,
		})
		d.build(t, dir, "--output", "type=image,push=true,name="+name)
	})
}

// Each platform is run and has a profile of its own. One that cannot run here is
// exported all the same.
func TestProfileOfPlatforms(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{
		"Dockerfile": `
FROM ` + busybox(t) + ` AS on-amd64
CMD ["cat", "/for-amd64"]
FROM scratch AS on-386
COPY --chmod=755 open /open
CMD ["/open", "/for-386"]
FROM scratch AS on-s390x
CMD ["/nothing", "/for-s390x"]
ARG TARGETARCH
FROM on-${TARGETARCH}
COPY for-* /
`,
		"open":      program386(t, exits),
		"for-amd64": "amd64\n", "for-386": "386\n", "for-s390x": "s390x\n",
	})
	image := repository(t) + ":latest"
	build := func(tag string, more ...string) *progress {
		p := startDaemon(t, ours).build(t, dir, append(more, "--build-arg", "SOURCE_DATE_EPOCH=1750000000",
			"--platform", "linux/amd64,linux/386,linux/s390x", "--output", profiled(image+tag, reproducible))...)
		require.Len(t, p.warnings, 1)
		require.Contains(t, p.warnings[0], "linux/s390x")
		require.Len(t, p.profileSteps(), 2)
		return p
	}
	build("", "--cache-to", maxCache(image+"-cache"))
	requireEStargz(t, image)
	got := map[string]string{}
	for _, im := range resolve(t, image).Images {
		layers := prioritized(t, im)
		got[im.Config.Architecture] = layers[len(layers)-1]
	}
	require.Equal(t, map[string]string{"amd64": "for-amd64", "386": "for-386", "s390x": "no landmark"}, got)

	for _, v := range build("-again", "--cache-from", "type=registry,ref="+image+"-cache").profileSteps() {
		require.True(t, v.Cached, v.Name)
	}
	require.Equal(t, resolve(t, image).Digest, resolve(t, image+"-again").Digest)
}
