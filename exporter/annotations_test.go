package exporter

import (
	"maps"
	"testing"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache"
	bkexporter "github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// The annotations of a converted image give way to those that the user sets.
func TestAnnotationsOfConverted(t *testing.T) {
	e := newEnv(t)
	amd64, arm64 := platforms.MustParse("linux/amd64"), platforms.MustParse("linux/arm64")
	src := &bkexporter.Source{
		Refs: map[string]cache.ImmutableRef{
			"linux/amd64": e.ref(nil, e.blob(layerOf(t, old, 100, "a"))),
			"linux/arm64": e.ref(nil, e.blob(layerOf(t, old, 100, "b"))),
		},
		Metadata: map[string][]byte{
			exptypes.ExporterPlatformsKey:                    platformsKey(t, "amd64", "arm64"),
			exptypes.ExporterImageConfigKey + "/linux/amd64": []byte(`{"architecture":"amd64","os":"linux"}`),
			exptypes.ExporterImageConfigKey + "/linux/arm64": []byte(`{"architecture":"arm64","os":"linux"}`),
		},
	}
	for _, k := range []string{"kept", "all", "one"} {
		src.Metadata[exptypes.AnnotationIndexKey(k)] = []byte("source")
		for _, p := range []*ocispecs.Platform{&amd64, &arm64} {
			src.Metadata[exptypes.AnnotationManifestKey(p, k)] = []byte("source")
			src.Metadata[exptypes.AnnotationManifestDescriptorKey(p, k)] = []byte("source")
		}
	}
	before := maps.Clone(src.Metadata)
	set := attrs{
		"annotation-index.all": "user", "annotation-manifest-descriptor.all": "user",
		"annotation.all": "user", "annotation[linux/arm64].one": "user",
	}
	annotations := func(a attrs) (all [][]string) {
		desc, err := e.export(src, with(a))
		require.NoError(t, err)
		var idx ocispecs.Index
		e.decode(desc, &idx)
		for _, m := range []map[string]string{
			idx.Annotations, idx.Manifests[0].Annotations, idx.Manifests[1].Annotations,
			e.image(idx.Manifests[0]).Annotations, e.image(idx.Manifests[1]).Annotations,
		} {
			all = append(all, []string{m["kept"], m["all"], m["one"]})
		}
		return all
	}
	user, source := "user", "source"
	of := func(values ...string) []string { return values }
	unchanged := of(source, source, source)
	require.Equal(t, [][]string{unchanged, unchanged, unchanged, unchanged, unchanged}, annotations(set), "as BuildKit does")
	set[attrConvert] = "app"
	require.Equal(t, [][]string{
		of(source, user, source), of(source, user, source), of(source, user, source),
		of(source, user, source), of(source, user, user),
	}, annotations(set))
	require.Equal(t, before, src.Metadata, "others export it too")
}
