package integration

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// The workloads besides the entrypoint.
func TestProfileWorkloads(t *testing.T) {
	needs(t)
	d := startDaemon(t, ours)
	dir := readerImage(t, "")
	stages := readerImage(t, "FROM app AS profile\nRUN cat /data/unused\nFROM app\n")
	for _, c := range []struct{ name, dir, attributes, want string }{
		{"none", dir, "estargz-profile=none", "no landmark, no landmark, no landmark, no landmark"},
		{"command", dir, `"estargz-profile-cmd=cat /data/unused"`, "nothing, data/unused, nothing, nothing"},
		{"stage", stages, "estargz-profile=stage", "nothing, data/unused, nothing, nothing"},
		{"stage and entrypoint", stages, "estargz-profile=stage+entrypoint", "nothing, data/first data/unused, data/second, run.sh"},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := repository(t) + ":latest"
			d.build(t, c.dir, "--output", profiled(image, c.attributes))
			layers := prioritized(t, onlyImage(t, image))
			require.Equal(t, c.want, strings.Join(layers[len(layers)-4:], ", "))
		})
	}
}

// toolchainImage is one whose users run RUN steps, as its own are. They read of
// the base, of what COPY brought and of what steps before them made, and they
// make, read again, rename and delete files of their own.
func toolchainImage(t *testing.T) string {
	return writeFiles(t, map[string]string{
		"Dockerfile": `
FROM ` + busybox(t) + ` AS tools
COPY unused tool.sh /tools/
RUN cat /tools/unused >/tools/generated

FROM ` + busybox(t) + `
COPY --from=tools /tools /tools
COPY header library unused gone /lib/
RUN sh /tools/tool.sh /made/object /lib/header
RUN sh /tools/tool.sh /made/program /made/object /lib/library
RUN cat /lib/gone && rm /lib/gone /made/program.log
CMD ["cat", "/lib/unused"]
`,
		"tool.sh": `
out=$1; shift
echo making $out
mkdir -p /made
cat "$@" >$out.tmp
cat $out.tmp >$out.log
mv $out.tmp $out
`,
		"header": "header\n", "library": "library\n", "unused": "unused\n", "gone": "gone\n",
	})
}

// A toolchain image is ordered by its own RUN steps: what they read comes first
// in the layers that were there before them, what only they saw does not.
func TestProfileOfRunSteps(t *testing.T) {
	needs(t)
	d := startDaemon(t, ours)
	dir, repo := toolchainImage(t), repository(t)
	// Two builds of the steps make the same files but for their times.
	build := func(d *daemon, tag, workload string, more ...string) *progress {
		output := profiled(repo+":"+tag, "estargz-profile="+workload, reproducible)
		return d.build(t, dir, append(more, "--build-arg", "SOURCE_DATE_EPOCH=1750000000", "--output", output)...)
	}
	made := func(p *progress) int { return strings.Count(p.logs.String(), "making /made/object") }
	digestOf := func(tag string) digest.Digest { return onlyImage(t, repo+":"+tag).Descriptor.Digest }

	p := build(d, "run", "run", "--attest", "type=sbom,generator="+scannerImage(t))
	require.Empty(t, p.warnings)
	require.Empty(t, p.profileSteps(), "the steps of the build are the workload")
	require.Equal(t, 1, made(p), "the scan is of the same steps")
	want := []string{"tools/tool.sh", "lib/header lib/library", "made/object", "nothing", "nothing"}
	requireRead(t, repo+":run", want)

	t.Run("but for the order", func(t *testing.T) {
		build(d, "none", "none")
		requireOnlyOrdered(t, repo+":none", repo+":run")
	})
	t.Run("again", func(t *testing.T) {
		requireCached(t, build(d, "again", "run"))
		require.Equal(t, digestOf("run"), digestOf("again"))
	})
	both := append([]string{"tools/tool.sh", "lib/header lib/library lib/unused"}, want[2:]...)
	cache := repository(t) + ":cache"
	t.Run("with the entrypoint", func(t *testing.T) {
		require.Zero(t, made(build(d, "both", "run+entrypoint", "--cache-to", maxCache(cache))))
		requireRead(t, repo+":both", both)
	})
	t.Run("on another builder", func(t *testing.T) {
		p := build(startDaemon(t, ours), "elsewhere", "entrypoint+run", "--cache-from", "type=registry,ref="+cache)
		requireCached(t, p)
		require.Equal(t, digestOf("both"), digestOf("elsewhere"))
	})
}
