package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// frontendImage pushes the frontend that llbfrontend is.
func frontendImage(t *testing.T) string {
	t.Helper()
	dir := writeFiles(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY llbfrontend /\nENTRYPOINT [\"/llbfrontend\"]\n"})
	// Static, and of the packages that hack/tools has built the daemon of.
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(dir, "llbfrontend"), "./llbfrontend")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	_, err := output(t, cmd)
	require.NoError(t, err)
	image := repository(t) + "-frontend:latest"
	startDaemon(t, ours).build(t, dir, "--output", "type=image,push=true,name="+image)
	return image
}

// Whoever wrote the frontend, the layers of the base are known: they keep the
// order that they have, and are not pulled.
func TestProfileOfOtherFrontends(t *testing.T) {
	needs(t)
	base, image := repository(t)+":base", repository(t)+":latest"
	startDaemon(t, ours).build(t, dataImage(t), "--output", profiled(base))
	d := startLazy(t, onDemand)
	d.buildctl(t, "build", "--frontend", "gateway.v0", "--opt", "source="+frontendImage(t), "--opt", "base="+base, "--output", profiled(image))

	layers := onlyImage(t, image).Manifest.Layers
	below := onlyImage(t, base).Manifest.Layers
	require.Len(t, layers, len(below)+1)
	require.Equal(t, digestsOf(below), digestsOf(layers[:len(below)]))
	all := prioritized(t, onlyImage(t, image))
	require.Equal(t, "new", all[len(all)-1])
	requireNotPulled(t, d, below)
}

func digestsOf(layers []ocispecs.Descriptor) (digests []string) {
	for _, layer := range layers {
		digests = append(digests, layer.Digest.String())
	}
	return digests
}
