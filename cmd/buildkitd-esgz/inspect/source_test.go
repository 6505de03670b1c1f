package inspect

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// The same image is found in a directory and in a tar, by its path and by the
// name of a layout.
func TestLayouts(t *testing.T) {
	s, desc := sample(t)
	layout, archive := s.layout(named(desc, "latest")), s.archive(named(desc, "latest"))
	colon := filepath.Join(t.TempDir(), "a:b")
	require.NoError(t, os.Rename(layout, colon))
	t.Chdir(filepath.Dir(colon))
	var want *Image
	for _, name := range []string{colon, "oci-layout://" + colon, "oci-layout://" + colon + ":latest", "./a:b", "a:b",
		"oci-layout://" + colon + "@" + desc.Digest.String(), archive, "oci-layout://" + archive + ":latest"} {
		t.Run(name, func(t *testing.T) {
			im, err := Inspect(t.Context(), name, Options{})
			require.NoError(t, err)
			require.Nil(t, im.Fetched)
			require.Equal(t, name, im.Name)
			im.Name = ""
			for _, l := range im.Layers {
				l.reader, l.duplicates, l.shadowed = nil, nil, nil
			}
			if want == nil {
				want = im
			}
			require.Equal(t, want, im)
		})
	}
	for name, says := range map[string]string{
		"oci-layout://" + colon + ":other": `has no image "other", only latest`,
		"./missing":                        "no such file",
		"Not A Name":                       "neither an OCI layout nor the name of an image",
	} {
		_, err := Inspect(t.Context(), name, Options{})
		require.ErrorContains(t, err, says)
	}
}

func TestNoLayout(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("no tar at all, of whatever kind"), 0o600))
	_, err := Inspect(t.Context(), file, Options{})
	require.ErrorContains(t, err, "neither a directory nor a tar")

	require.NoError(t, os.WriteFile(file, tarOf(t, file1()), 0o600))
	_, err = Inspect(t.Context(), file, Options{})
	require.ErrorContains(t, err, "has no index.json")
}

func file1() node { return file("manifest.json", 10, "x") }

// A layout is not a way out of its directory, nor into a pipe.
func TestLayoutEscapes(t *testing.T) {
	s := newStore(t)
	desc := s.image("linux/amd64", gzipped(t, file("a", 10, "a")))
	layout := s.layout(desc)
	name := filepath.Join(layout, blobName(desc.Digest))
	outside := filepath.Join(t.TempDir(), "outside")
	require.NoError(t, os.Rename(name, outside))
	require.NoError(t, os.Symlink(outside, name))
	_, err := Inspect(t.Context(), layout, Options{})
	require.ErrorContains(t, err, "escapes")

	require.NoError(t, os.Remove(name))
	require.NoError(t, syscall.Mkfifo(name, 0o600))
	_, err = Inspect(t.Context(), layout, Options{})
	require.ErrorContains(t, err, "not a regular file")

	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	_, err = Inspect(t.Context(), pipe, Options{})
	require.ErrorContains(t, err, "neither a directory nor a file")
}

func TestPlatforms(t *testing.T) {
	s := newStore(t)
	layer := func(name string) packed { return eStargz(t, estargz.Options{}, file(name, 10, name)) }
	amd64, arm64, arm7 := s.image("linux/amd64", layer("1")), s.image("linux/arm64", layer("2")), s.image("linux/arm/v7", layer("3"))
	attestation := s.image("unknown/unknown", layer("4"))
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	all := s.index(arm64, amd64, attestation, arm7)
	bare := amd64
	bare.Platform = nil

	for name, c := range map[string]struct {
		roots    []ocispecs.Descriptor
		platform string
		want     string // or a part of the error
	}{
		"this machine's":       {[]ocispecs.Descriptor{all}, "", "linux/amd64"},
		"another":              {[]ocispecs.Descriptor{all}, "linux/arm64", "linux/arm64"},
		"a variant":            {[]ocispecs.Descriptor{all}, "linux/arm/v7", "linux/arm/v7"},
		"a missing one":        {[]ocispecs.Descriptor{all}, "linux/s390x", "there is no image for the platform; give one of linux/arm64, linux/amd64, linux/arm/v7"},
		"none":                 {[]ocispecs.Descriptor{all}, "a/b/c/d/e", `platform "a/b/c/d/e"`},
		"the only one":         {[]ocispecs.Descriptor{s.index(arm64, attestation)}, "", "linux/arm64"},
		"the only one, asked":  {[]ocispecs.Descriptor{s.index(arm64, attestation)}, "linux/amd64", "there is no image for the platform; give one of linux/arm64"},
		"no index":             {[]ocispecs.Descriptor{bare}, "", "linux/amd64"},
		"no index, not it":     {[]ocispecs.Descriptor{bare}, "linux/arm64", "the image is for linux/amd64, not for linux/arm64"},
		"two names of one":     {[]ocispecs.Descriptor{named(amd64, "a"), named(amd64, "b")}, "", "linux/amd64"},
		"two names":            {[]ocispecs.Descriptor{named(amd64, "a"), named(arm64, "b")}, "", "several images match: a, b"},
		"two of a platform":    {[]ocispecs.Descriptor{amd64, s.image("linux/amd64", layer("5"))}, "", "several images match: linux/amd64, linux/amd64"},
		"attestations alone":   {[]ocispecs.Descriptor{attestation}, "", "there is no image in it"},
		"nothing":              {nil, "", "there is no image in it"},
		"an index in an index": {[]ocispecs.Descriptor{s.index(s.index(all))}, "linux/arm64", "linux/arm64"},
	} {
		t.Run(name, func(t *testing.T) {
			im, err := Inspect(t.Context(), s.layout(c.roots...), Options{Platform: c.platform})
			if err != nil {
				require.ErrorContains(t, err, c.want)
				return
			}
			require.Equal(t, c.want, im.Platform)
		})
	}
}
