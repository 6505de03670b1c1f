package integration

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	stargz "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/stretchr/testify/require"
)

// inspected is what the test reads of inspect --json.
type inspected struct {
	Name, Platform, Digest string
	Size, PrefetchBytes    int64
	Fetched                struct{ Requests, Bytes int64 }
	Profile                struct{ Files int }
	Layers                 []struct {
		Digest, Format, Landmark, Error string
		Size, PrefetchBytes             int64
		TOC                             struct{ Verified bool }
		Prioritized                     []struct{ Path string }
		Profile                         struct{ PrioritizedFiles, PrioritizedBytes, ReadBytes int64 }
	}
}

// inspect runs the subcommand as a user who is logged in as the directory says.
func inspect(t *testing.T, logins string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(ours, append([]string{"inspect"}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+logins)
	return output(t, cmd)
}

// What inspect says of an image that a build has just pushed, with a profile, to a
// registry that asks for a password, is what the stock library finds in its blobs.
func TestInspect(t *testing.T) {
	needs(t)
	g := newGate(t)
	g.login.Lasts = time.Minute
	name := g.address + "/" + repositoryName(t) + ":latest"
	metadata := filepath.Join(tempDir(t), "metadata.json")
	d := startDaemon(t, ours)
	d.build(t, readerImage(t, ""), "--platform", "linux/amd64,linux/386", "--attest", "type=provenance",
		"--output", profiled(name), "--metadata-file", metadata)
	pushed := strings.Replace(name, g.address, registry(t), 1)

	for _, platform := range []string{"linux/amd64", "linux/386"} {
		t.Run(platform, func(t *testing.T) {
			image := resolve(t, pushed).Images[0]
			if platform == "linux/386" {
				image = resolve(t, pushed).Images[1]
			}
			text, err := inspect(t, shared.logins(), "--json", "--platform", platform, "--metadata", metadata, name)
			require.NoError(t, err)
			var got inspected
			require.NoError(t, json.Unmarshal([]byte(text), &got))
			require.Equal(t, name, got.Name)
			require.Equal(t, platform, got.Platform)
			require.Equal(t, image.Descriptor.Digest.String(), got.Digest)
			require.NotZero(t, got.Profile.Files)
			require.Less(t, got.Fetched.Bytes, got.Size/10)

			files := prioritized(t, image)
			require.Len(t, got.Layers, len(files))
			var prefetched, read int64
			for i, l := range got.Layers {
				require.Equal(t, image.Manifest.Layers[i].Digest.String(), l.Digest)
				require.Equal(t, []string{"estargz", ""}, []string{l.Format, l.Error})
				require.True(t, l.TOC.Verified)
				blob, err := image.Blob(t.Context(), image.Manifest.Layers[i])
				require.NoError(t, err)
				r, err := stargz.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
				require.NoError(t, err)
				if landmark, ok := r.Lookup(prefetchLandmark); ok {
					require.Equal(t, "prefetch", l.Landmark)
					require.Equal(t, landmark.Offset, l.PrefetchBytes)
				} else {
					require.Equal(t, "no-prefetch", l.Landmark)
					require.Zero(t, l.PrefetchBytes)
				}
				var paths []string
				for _, f := range l.Prioritized {
					paths = append(paths, f.Path)
				}
				if len(paths) == 0 {
					paths = []string{"nothing"}
				}
				require.Equal(t, files[i], strings.Join(paths, " "))
				prefetched += l.PrefetchBytes
				read += l.Profile.ReadBytes
				require.LessOrEqual(t, l.Profile.ReadBytes, l.Profile.PrioritizedBytes)
			}
			require.Equal(t, got.PrefetchBytes, prefetched)
			require.NotZero(t, read)
		})
	}

	t.Run("text and picture", func(t *testing.T) {
		text, err := inspect(t, shared.logins(), name)
		require.NoError(t, err)
		require.Contains(t, text, "data/first")
		require.NotContains(t, text, "data/unused")
		svg, err := inspect(t, shared.logins(), "--svg", name)
		require.NoError(t, err)
		require.Contains(t, svg, "data/unused")
		require.NoError(t, xml.Unmarshal([]byte(svg), new(struct{})))
	})
	t.Run("without a password", func(t *testing.T) {
		_, err := inspect(t, tempDir(t), name)
		require.ErrorContains(t, err, "401 Unauthorized")
	})
	t.Run("layouts", func(t *testing.T) {
		dir := tempDir(t)
		for _, dest := range []string{filepath.Join(dir, "layout"), filepath.Join(dir, "image.tar")} {
			attrs := "type=oci,tar=false,compression=estargz,force-compression=true,dest="
			if strings.HasSuffix(dest, ".tar") {
				attrs = strings.Replace(attrs, "tar=false,", "", 1)
			}
			d.build(t, readerImage(t, ""), "--output", attrs+dest)
			text, err := inspect(t, tempDir(t), dest)
			require.NoError(t, err)
			require.Contains(t, text, "data/first")
		}
	})
}
