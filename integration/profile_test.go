package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
)

// readerImage reads some of its files when it runs: in the order of the
// Dockerfile's lines one of the base, one of each layer, and the beginning of a
// large one.
func readerImage(t *testing.T, more string) string {
	return writeFiles(t, map[string]string{
		"Dockerfile": `
FROM ` + busybox(t) + ` AS app
WORKDIR /data
RUN hardfiles random /large 30000000 1 && mkdir -m 777 /out && touch -d @1700000000 /large /out
COPY first unused /data/
COPY second /data/
COPY run.sh /
ENV NAME=second
USER 65534
CMD ["sh", "/run.sh"]
` + more,
		"first": "first\n", "second": "second\n", "unused": "unused\n",
		"run.sh": "cat first /data/$NAME; head -c 10 /large >/dev/null; sh -c 'id -u'; echo made >/out/made; cat /out/made\n",
	})
}

// wantRead are the layers of readerImage, above those of the base.
var wantRead = []string{"nothing", "data/first", "data/second", "run.sh"}

// dataImage is smaller: files to read, of which it reads two, a user, and a
// program that crashes.
func dataImage(t *testing.T) string {
	t.Helper()
	return writeFiles(t, map[string]string{
		"Dockerfile": `
FROM ` + busybox(t) + `
COPY --chmod=755 crash /crash
RUN mkdir -p /etc && echo user:x:1000:1000::/:/bin/sh >/etc/passwd
WORKDIR /data
COPY first unused /data/
CMD ["cat", "first", "/etc/passwd"]
`,
		"crash": program386(t, crashes),
		"first": "first\n", "unused": "unused\n",
	})
}

// wantDataRead are the layers of dataImage, above those of the base.
var wantDataRead = []string{"nothing", "etc/passwd", "nothing", "data/first"}

// profileSteps are the vertexes that run a workload, by their names.
func (p *progress) profileSteps() map[string]*client.Vertex {
	found := map[string]*client.Vertex{}
	for _, v := range p.steps() {
		if strings.HasPrefix(v.Name, "[profile ") && !strings.HasSuffix(v.Name, "keep with the image") {
			found[v.Name] = v
		}
	}
	return found
}

func profileStep(t *testing.T, p *progress) (name string, cached bool) {
	t.Helper()
	steps := p.profileSteps()
	require.Len(t, steps, 1, p.text())
	for _, v := range steps {
		name, cached = v.Name, v.Cached
	}
	return name, cached
}

// The image that lands in the registry has the files that its entrypoint reads
// in front, and nothing of the run is left in it.
func TestProfile(t *testing.T) {
	needs(t)
	d := startDaemon(t, ours)
	dir, image := readerImage(t, ""), repository(t)+":latest"
	metadata := filepath.Join(tempDir(t), "metadata.json")
	p := d.build(t, dir, "--output", profiled(image), "--metadata-file", metadata)
	name, _ := profileStep(t, p)
	require.Equal(t, "[profile linux/amd64] sh /run.sh", name)
	require.NotContains(t, p.logs.String(), "65534", "the output of a workload that did not fail")
	require.Regexp(t, `^recorded \d+ files, [0-9.]+ MB in [0-9.]+ s \(exit\)`, p.logs.String())
	require.Empty(t, p.warnings)
	requireRead(t, image, wantRead)

	peer := startContainerd(t)
	require.Contains(t, peer.runPlain(t, image), "first\nsecond\n65534\nmade\n")
	require.Contains(t, peer.runLazily(t, image), "first\nsecond\n65534\nmade\n")
	require.Equal(t, "0\n", peer.runPlain(t, image, "sh", "-c", "ls /out | wc -l"), "what the workload wrote")

	raw, err := os.ReadFile(metadata)
	require.NoError(t, err)
	var answer map[string]any
	require.NoError(t, json.Unmarshal(raw, &answer))
	require.Contains(t, fmt.Sprint(answer["estargz.profiles"]), "prioritizedFiles")

	t.Run("again", func(t *testing.T) {
		p := d.build(t, dir, "--output", profiled(image+"-again"))
		_, cached := profileStep(t, p)
		require.True(t, cached)
		require.Equal(t, resolve(t, image).Digest, resolve(t, image+"-again").Digest)
	})
	t.Run("fails", func(t *testing.T) {
		p, _ := d.profileOf(t, dir, []string{"sh", "-c", "id -u; exit 1"})
		require.Contains(t, p.logs.String(), "its output:\n65534\n", "the user of the image")
	})
	t.Run("buildctl", func(t *testing.T) {
		d.buildctl(t, "build", "--frontend", "dockerfile.v0", "--local", "context="+dir, "--local", "dockerfile="+dir, "--output", profiled(image+"-buildctl"))
		require.Equal(t, resolve(t, image).Digest, resolve(t, image+"-buildctl").Digest)
	})
	t.Run("without force", func(t *testing.T) {
		d.build(t, dir, "--output", "type=image,push=true,compression=estargz,name="+image+"-unforced")
		layers := prioritized(t, onlyImage(t, image+"-unforced"))
		require.Equal(t, wantRead, layers[len(layers)-len(wantRead):])
	})
	t.Run("but for the order", func(t *testing.T) {
		d.build(t, dir, "--output", estargz(image+"-none"))
		requireOnlyOrdered(t, image+"-none", image)
	})
}

// From scratch, twice: the same bytes, although nothing but chance decides
// which of the processes reads which file first.
func TestProfileIsReproducible(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{
		"Dockerfile": `
FROM ` + busybox(t) + `
RUN hardfiles many /many 1000 && hardfiles random /large 40000000 1
COPY race.sh /
CMD ["sh", "/race.sh"]
`,
		// Each reads a few dozen files in an order of its own, some of them with
		// the others, and a part of the large one.
		"race.sh": `
for n in 0 1 2 3 4 5 6 7; do
	(seq $((n * 50)) $((n * 50 + 99)) | shuf | while read -r i; do cat /many/0/$i; done
	 dd if=/large of=/dev/null bs=1M skip=$((n * 2)) count=1) >/dev/null 2>&1 &
done
wait
`,
	})
	build := func(tag string) string {
		image := repository(t) + ":" + tag
		startDaemon(t, ours).build(t, dir, "--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=1750000000", "--output", profiled(image, reproducible))
		requireEStargz(t, image)
		layers := prioritized(t, onlyImage(t, image))
		require.Len(t, strings.Fields(layers[len(layers)-2]), 450)
		return resolve(t, image).Digest.String()
	}
	require.Equal(t, build("one"), build("two"))
}
