package inspect

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/exporter"
)

// profilesOf is what an exporter answers for the sample.
func profilesOf(t *testing.T, s *store, desc ocispecs.Descriptor) string {
	t.Helper()
	var manifest ocispecs.Manifest
	require.NoError(t, json.Unmarshal(s.blobs[desc.Digest], &manifest))
	type layer map[string]any
	var layers []layer
	for i, d := range manifest.Layers {
		l := layer{"digest": d.Digest, "prioritizedFiles": 0, "prioritizedBytes": 0, "readBytes": 0, "otherFiles": 0, "otherReadBytes": 0}
		if i == 0 {
			l["prioritizedFiles"], l["prioritizedBytes"], l["readBytes"] = 2, 120_900, 100_900
			l["otherFiles"], l["otherReadBytes"] = 1, 4096
		}
		layers = append(layers, l)
	}
	text, err := json.Marshal([]any{
		map[string]any{"platform": "linux/arm64", "profile": "sha256:1", "files": 9, "layers": layers[:1]},
		map[string]any{"platform": "linux/amd64", "profile": "sha256:2", "files": 3, "layers": layers},
	})
	require.NoError(t, err)
	return string(text)
}

func metadataOf(t *testing.T, s *store, desc ocispecs.Descriptor) string {
	return written(t, fmt.Sprintf(`{"containerimage.digest": "sha256:3", "estargz.profiles": %q}`, profilesOf(t, s, desc)))
}

func written(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "metadata.json")
	require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
	return name
}

func TestMetadata(t *testing.T) {
	s, desc := sample(t)
	layout, profiles := s.layout(desc), profilesOf(t, s, desc)
	for name, text := range map[string]string{
		"build":     fmt.Sprintf(`{"estargz.profiles": %q}`, profiles),
		"unquoted":  fmt.Sprintf(`{"estargz.profiles": %s}`, profiles),
		"bake":      fmt.Sprintf(`{"other": {"a": 1}, "app": {"estargz.profiles": %q}, "buildx.build.warnings": []}`, profiles),
		"bake, two": fmt.Sprintf(`{"other": {"estargz.profiles": "[]"}, "app": {"estargz.profiles": %q}}`, profiles),
	} {
		t.Run(name, func(t *testing.T) {
			im, err := Inspect(t.Context(), layout, Options{Metadata: written(t, text)})
			require.NoError(t, err)
			require.Equal(t, &Profile{Digest: "sha256:2", Files: 3}, im.Profile)
			require.Equal(t, &LayerProfile{Files: 2, Bytes: 120_900, Read: 100_900, OtherFiles: 1, OtherRead: 4096}, im.Layers[0].Profile)
			require.Zero(t, *im.Layers[1].Profile)
		})
	}
	for says, text := range map[string]string{
		"no profile of an image with these layers": `{"estargz.profiles": "[{\"layers\": [{\"digest\": \"sha256:4\"}]}]"}`,
		"it has no estargz.profiles":               `{"containerimage.digest": "sha256:3"}`,
		"unexpected end of JSON":                   `{`,
		"cannot unmarshal":                         `{"estargz.profiles": "{}"}`,
	} {
		t.Run(says, func(t *testing.T) {
			_, err := Inspect(t.Context(), layout, Options{Metadata: written(t, text)})
			require.ErrorContains(t, err, says)
		})
	}
	_, err := Inspect(t.Context(), layout, Options{Metadata: "missing"})
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestMetadataKey(t *testing.T) { require.Equal(t, exporter.KeyProfiles, keyProfiles) }
