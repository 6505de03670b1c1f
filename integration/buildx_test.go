package integration

import (
	"encoding/json"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// helloImage is a small image with a layer to compress.
func helloImage(t *testing.T) string {
	return writeFiles(t, map[string]string{
		"Dockerfile": `
FROM ` + busybox(t) + ` AS hello
RUN hardfiles random /random 200000 1
COPY hello /hello
CMD ["cat", "/hello"]
`,
		"hello": "hello\n",
	})
}

// What a user of buildx does with a builder must work with ours.
func TestBuildx(t *testing.T) {
	needs(t)
	d := startDaemon(t, ours)
	image := repository(t) + ":latest"
	d.build(t, helloImage(t), "--output", estargz(image))
	layers := requireEStargz(t, image)
	require.Len(t, layers, 4)

	t.Run("inspect", func(t *testing.T) {
		out := d.buildx(t, "inspect")
		require.Contains(t, out, "Status:           running")
		require.Regexp(t, `BuildKit version: +v\d+\.\d+\.\d+`, out)
	})
	t.Run("imagetools inspect", func(t *testing.T) {
		require.Contains(t, d.buildx(t, "imagetools", "inspect", image), "Digest:")
		raw := d.buildx(t, "imagetools", "inspect", "--raw", image)
		require.Contains(t, raw, layers[0].Descriptor.Digest.String())
		require.Contains(t, raw, layers[0].TOCDigest.String())
	})
	t.Run("history ls", func(t *testing.T) {
		out := d.buildx(t, "history", "ls", "--format", "json")
		var build struct {
			Ref    string
			Status string
		}
		require.NoError(t, json.Unmarshal([]byte(strings.Split(out, "\n")[0]), &build), out)
		require.Equal(t, "Completed", build.Status)
		ref := path.Base(build.Ref) // without the builder's name
		logs, err := d.command(t.Context(), "buildx", "history", "logs", ref, "--progress=plain").CombinedOutput()
		require.NoError(t, err)
		require.Contains(t, string(logs), "hardfiles random")
		require.Contains(t, d.buildx(t, "history", "inspect", ref), "Build Steps:")
	})
	t.Run("du and prune", func(t *testing.T) {
		dir := helloImage(t)
		build := func(tag string) string {
			// What depends on the time does not here.
			d.build(t, dir, "--build-arg", "SOURCE_DATE_EPOCH=1750000000", "--output", estargz(image+tag, reproducible))
			requireEStargz(t, image+tag)
			return resolve(t, image+tag).Digest.String()
		}
		before := build("-before")
		require.Contains(t, d.buildx(t, "du", "--verbose"), "hardfiles random")
		d.buildx(t, "prune", "--all", "--force")
		require.NotContains(t, d.buildx(t, "du", "--verbose"), "hardfiles random")
		// The next build starts from nothing.
		require.Equal(t, before, build("-after"))
	})
}

func TestBuildctl(t *testing.T) {
	needs(t)
	d := startDaemon(t, ours)
	dir := helloImage(t)
	image := repository(t) + ":latest"
	metadata := filepath.Join(tempDir(t), "metadata.json")
	d.buildctl(t, "build", "--frontend", "dockerfile.v0", "--local", "context="+dir, "--local", "dockerfile="+dir,
		"--output", estargz(image), "--metadata-file", metadata)
	require.Len(t, requireEStargz(t, image), 4)

	raw, err := os.ReadFile(metadata)
	require.NoError(t, err)
	require.Contains(t, string(raw), onlyImage(t, image).Descriptor.Digest.String())

	require.Contains(t, d.buildctl(t, "debug", "workers"), "linux/amd64")
	require.Contains(t, d.buildctl(t, "debug", "info"), "v0.")
	require.Contains(t, d.buildctl(t, "du", "-v"), "hardfiles random")
	d.buildctl(t, "prune", "--all")
	require.NotContains(t, d.buildctl(t, "du", "-v"), "hardfiles random")
}

// The target of the repository's bake file, on a real Debian base: this is the
// demo.
func TestBake(t *testing.T) {
	needs(t)
	name := "demo"
	base := debian(t)
	d := startDaemon(t, ours)
	bake := func(env []string, args ...string) string {
		cmd := d.command(t.Context(), "buildx", append([]string{"bake"}, args...)...)
		cmd.Dir = ".."
		cmd.Env = append(cmd.Env, env...)
		printed, err := output(t, cmd)
		require.NoError(t, err)
		return printed
	}
	// The bake file takes the base from the registry by this name.
	require.Equal(t, registry(t)+"/debian:bookworm", base)
	bake([]string{"REGISTRY=" + registry(t), "TAG=bake"}, "--progress=plain", "demo")
	// The daemon's image has bases that are not at hand here. TestDaemonImage builds
	// it upon others.
	for _, target := range []string{"image", "image-rootless", "binaries", "cross", "test", "demo"} {
		printed := bake([]string{"GOLANG=mirror.example/golang"}, "--print", target)
		if target != "demo" {
			require.Contains(t, printed, `"GOLANG": "mirror.example/golang"`, target)
		}
	}
	image := registry(t) + "/" + name + ":bake"
	layers := requireEStargz(t, image)
	require.Len(t, layers, 4)
	require.Greater(t, layers[1].Files, 1000, "pandas has many files")

	const totals = "Accra=210 Kyoto=150 Lisbon=100\n"
	run := []string{"python3", "app.py", "--once"}
	peer := startContainerd(t)
	require.Equal(t, totals, peer.runPlain(t, image, run...))
	require.Equal(t, totals, peer.runLazily(t, image, run...))
	require.Equal(t, totals, runPodman(t, image, "--once"))

	converted := repository(t) + ":converted"
	bake([]string{"SOURCE=" + busybox(t), "TARGET=" + converted}, "--set", "convert.platform=linux/amd64", "convert")
	require.NotEmpty(t, requireEStargz(t, converted))
	require.Equal(t, configWithoutLayers(t, onlyImage(t, busybox(t))), configWithoutLayers(t, onlyImage(t, converted)))
}
