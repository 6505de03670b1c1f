package integration

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/pushed"
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

// prioritized returns the files in front of the landmark, layer by layer.
func prioritized(t *testing.T, image *pushed.Image) (layers []string) {
	t.Helper()
	for _, desc := range image.Manifest.Layers {
		if desc.Annotations["containerd.io/snapshot/stargz/toc.digest"] == "" {
			layers = append(layers, "no eStargz")
			continue
		}
		blob, err := image.Blob(t.Context(), desc)
		require.NoError(t, err)
		unpacked, err := pushed.Unpack(blob)
		require.NoError(t, err)
		layers = append(layers, beforeLandmark(t, unpacked))
	}
	return layers
}

// beforeLandmark joins the names of regular files.
func beforeLandmark(t *testing.T, layer []byte) string {
	t.Helper()
	var names []string
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return "no landmark"
		}
		require.NoError(t, err)
		switch h.Name {
		case ".prefetch.landmark":
			return strings.Join(names, " ")
		case ".no.prefetch.landmark":
			require.Empty(t, names)
			return "nothing"
		}
		if h.Typeflag == tar.TypeReg {
			names = append(names, h.Name)
		}
	}
}

// wantRead are the layers of readerImage, above those of the base.
var wantRead = []string{"nothing", "data/first", "data/second", "run.sh"}

func requireRead(t *testing.T, image string, want []string) {
	t.Helper()
	requireEStargz(t, image)
	layers := prioritized(t, onlyImage(t, image))
	require.Equal(t, want, layers[len(layers)-len(want):])
	require.Contains(t, layers[0], "busybox", "what runs is read")
}

func profileStep(t *testing.T, p *progress) (name string, cached bool) {
	t.Helper()
	for _, v := range p.steps() {
		if strings.HasPrefix(v.Name, "[profile ") {
			return v.Name, v.Cached
		}
	}
	t.Fatalf("no profiling step:\n%s", p.text())
	return "", false
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
	require.Contains(t, p.logs.String(), "65534", "the user of the image")
	require.Regexp(t, `recorded \d+ files, [0-9.]+ MB in [0-9.]+ s \(exit\)`, p.logs.String())
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
	t.Run("without force", func(t *testing.T) {
		d.build(t, dir, "--output", "type=image,push=true,compression=estargz,name="+image+"-unforced")
		layers := prioritized(t, onlyImage(t, image+"-unforced"))
		require.Equal(t, wantRead, layers[len(layers)-len(wantRead):])
	})
}

// Another builder takes profile, order and digest from the remote cache.
func TestProfileFromCache(t *testing.T) {
	needs(t)
	dir, image := readerImage(t, ""), repository(t)+":latest"
	startDaemon(t, ours).build(t, dir, "--output", profiled(image),
		"--cache-to", "type=registry,mode=max,compression=estargz,force-compression=true,oci-mediatypes=true,image-manifest=true,ref="+image+"-cache")
	p := startDaemon(t, ours).build(t, dir, "--output", profiled(image+"-again"), "--cache-from", "type=registry,ref="+image+"-cache")
	_, cached := profileStep(t, p)
	require.True(t, cached, p.text())
	require.Equal(t, resolve(t, image).Digest, resolve(t, image+"-again").Digest)
	requireRead(t, image+"-again", wantRead)
}

// From scratch, twice: the same bytes.
func TestProfileIsReproducible(t *testing.T) {
	needs(t)
	dir := readerImage(t, "")
	build := func(tag string) string {
		image := repository(t) + ":" + tag
		startDaemon(t, ours).build(t, dir, "--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=1750000000", "--output", profiled(image, reproducible))
		requireRead(t, image, wantRead)
		return resolve(t, image).Digest.String()
	}
	require.Equal(t, build("one"), build("two"))
}

// The other workloads.
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

// A workload may do what it likes: the image is exported, and soon.
func TestProfileOfBadWorkloads(t *testing.T) {
	needs(t)
	d := startDaemon(t, ours)
	for _, c := range []struct {
		name, command, warning string
		attributes             []string
	}{
		{"fails", "cat first; exit 7", "exit code 7", nil},
		{"is not there", "/nowhere", "could not be started", nil},
		{"runs forever", "cat first; sleep 1000", "", []string{"estargz-profile-period=3s"}},
		{"is idle", "cat first; sleep 1000", "", []string{"estargz-profile-idle=1s"}},
		{"gets ready", "cat first; echo is ready now; sleep 1000", "", []string{"estargz-profile-ready=ready", "estargz-profile-idle=1h", "estargz-profile-period=1h"}},
		{"ignores TERM", "trap '' TERM; cat first; while true; do sleep 1; done", "", []string{"estargz-profile-idle=1s"}},
		{"forks", "cat first; (sleep 1000 &) ; (setsid sleep 1000 &); sleep 1000", "", []string{"estargz-profile-idle=1s"}},
		{"deletes", "cat first; rm -rf /data /run.sh /bin", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			command, err := json.Marshal([]string{"sh", "-c", c.command})
			require.NoError(t, err)
			if strings.HasPrefix(c.command, "/") {
				command = []byte(`["` + c.command + `"]`)
			}
			dir := writeFiles(t, map[string]string{
				"Dockerfile": "FROM " + busybox(t) + "\nCOPY first /data/\nWORKDIR /data\nCMD " + string(command) + "\n",
				"first":      "first\n",
			})
			image := repository(t) + ":latest"
			start := time.Now()
			p := d.build(t, dir, "--output", profiled(image, c.attributes...))
			require.Less(t, time.Since(start), 30*time.Second)
			requireEStargz(t, image)
			layers := prioritized(t, onlyImage(t, image))
			if !strings.HasPrefix(c.command, "/") {
				require.Contains(t, layers, "data/first")
			}
			if c.warning == "" {
				require.Empty(t, p.warnings)
			} else {
				require.Contains(t, strings.Join(p.warnings, "\n"), c.warning)
			}
			require.Equal(t, "first\n", startContainerd(t).runPlain(t, image, "cat", "/data/first"))
		})
	}
}

// The workload has no network and none of the builder's files.
func TestProfileIsIsolated(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{"Dockerfile": "FROM " + busybox(t) + "\n" +
		`CMD ["sh", "-c", "echo net: $(ls /sys/class/net); echo env: $(env | grep -c ESGZ); echo dir: $(ls -a / | grep -c esgz)"]` + "\n"})
	p := startDaemon(t, ours).build(t, dir, "--output", profiled(repository(t)))
	logs := p.logs.String()
	require.Contains(t, logs, "net: lo\n")
	require.Contains(t, logs, "env: 0\n")
	require.Contains(t, logs, "dir: 0\n")
}

// A platform that cannot run here is exported all the same.
func TestProfileOfPlatforms(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{
		"Dockerfile": "FROM " + busybox(t) + " AS amd64\nFROM scratch AS s390x\nARG TARGETARCH\nFROM ${TARGETARCH}\nCOPY file /\nCMD [\"cat\", \"/file\"]\n",
		"file":       "contents\n",
	})
	image := repository(t) + ":latest"
	p := startDaemon(t, ours).build(t, dir, "--platform", "linux/amd64,linux/s390x", "--output", profiled(image))
	require.Contains(t, strings.Join(p.warnings, "\n"), "linux/s390x")
	ref := resolve(t, image)
	require.Len(t, ref.Images, 2)
	requireEStargz(t, image)
	for _, im := range ref.Images {
		layers := prioritized(t, im)
		want := "file"
		if im.Config.Architecture != "amd64" {
			want = "nothing"
		}
		require.Equal(t, want, layers[len(layers)-1], im.Config.Architecture)
	}
}
