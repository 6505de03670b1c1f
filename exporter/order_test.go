package exporter

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	bkexporter "github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// profileOf is what a frontend attaches to a result.
func profileOf(t *testing.T, read ...string) map[string][]byte {
	t.Helper()
	p := &profile.Profile{}
	for _, name := range read {
		p.Files = append(p.Files, profile.File{Path: name, Size: 100})
	}
	return attached(t, p)
}

func attached(t *testing.T, p *profile.Profile) map[string][]byte {
	t.Helper()
	packed, err := p.Pack()
	require.NoError(t, err)
	request, _, err := profile.ParseRequest(nil, profile.Default())
	require.NoError(t, err)
	return map[string][]byte{request.MetadataKey(thisPlatform()): packed}
}

// names lists the files of a layer in the order of its tar.
func (e *env) names(desc ocispecs.Descriptor) (names []string) {
	e.t.Helper()
	for r := tar.NewReader(bytes.NewReader(gunzipped(e.t, e.read(desc)))); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names
		}
		require.NoError(e.t, err)
		names = append(names, h.Name)
	}
}

// One that wants no profile gets no order, whatever the exporter beside it wants.
func TestOrderOfOwnRequest(t *testing.T) {
	for attr, wanted := range map[string]bool{"entrypoint": true, "none": false, "run": false} {
		request, _, err := profile.ParseRequest(map[string]string{"estargz-profile": attr}, profile.Default())
		require.NoError(t, err)
		src := &bkexporter.Source{Metadata: profileOf(t, "a")}
		ps, err := exptypes.ParsePlatforms(src.Metadata)
		require.NoError(t, err)
		order, err := (&instance{request: *request}).orderOf(src, &ps.Platforms[0], &report{})
		require.NoError(t, err)
		require.Equal(t, wanted, order != nil, attr)
	}
}

// A landmark in the base image is somebody's choice. In a layer of this build it
// comes from the image that the inline cache was in.
func TestLandmarks(t *testing.T) {
	const landmark = ".prefetch.landmark"
	e := newEnv(t)
	base, own := e.eStargz(tarOf(t, old, 100, "base-a", landmark, "base-b")), e.eStargz(tarOf(t, old, 100, "own-a", landmark, "own-b"))
	src := &bkexporter.Source{Ref: e.ref(nil, base, own), Metadata: profileOf(t, "base-b", "own-b")}
	src.Metadata[exptypes.ExporterImageBaseConfigKey] = baseConfig(t, base)
	export := func(more attrs) []ocispecs.Descriptor {
		desc, err := e.export(src, with(more))
		require.NoError(t, err)
		img := e.image(desc)
		e.checkLayer(img, 0)
		e.checkLayer(img, 1)
		return img.Layers
	}

	layers := export(nil)
	require.Equal(t, base.Digest, layers[0].Digest)
	require.Equal(t, []string{"own-b", landmark, "own-a"}, e.names(layers[1])[:3])

	all := export(attrs{"estargz-reorder": "all"})
	require.Equal(t, []string{"base-b", landmark, "base-a"}, e.names(all[0])[:3])
	require.Equal(t, layers[1].Digest, all[1].Digest)
}

// The answer says of each layer what was put first, and how much of it is read.
func TestReport(t *testing.T) {
	e := newEnv(t)
	lower, upper := e.eStargz(tarOf(t, old, 100, "unread")), e.eStargz(tarOf(t, old, 100, "part", "large", "whole"))
	p := &profile.Profile{Files: []profile.File{
		{Path: "whole", Size: 100},
		{Path: "part", Size: 100, Ranges: []profile.Range{{Offset: 10, Size: 20}, {Offset: 50, Size: 1}}},
		{Path: "large", Size: 1 << 30, Ranges: []profile.Range{{Offset: 0, Size: 30}}},
		{Path: "made by the workload", Size: 100},
	}}
	response, desc, err := e.answer(&bkexporter.Source{Ref: e.ref(nil, lower, upper), Metadata: attached(t, p)}, with(nil))
	require.NoError(t, err)
	var got []imageReport
	require.NoError(t, json.Unmarshal([]byte(response[KeyProfiles]), &got))
	layers := e.image(desc).Layers
	encoded, err := p.Encode()
	require.NoError(t, err)
	require.Equal(t, []imageReport{{
		Platform: thisPlatform(), Profile: digest.FromBytes(encoded), Files: 4,
		Layers: []layerReport{
			{Digest: layers[0].Digest},
			{Digest: layers[1].Digest, Files: 2, Bytes: 200, Read: 121, OtherFiles: 1, OtherRead: 30},
		},
	}}, got)
	require.Contains(t, response[KeyProfiles], `"prioritizedFiles":2,"prioritizedBytes":200,"readBytes":121,"otherFiles":1,"otherReadBytes":30`)
}

// TestOrderKeepsSharedMembers: a profile does not undo estargz-min-chunk-size.
func TestOrderKeepsSharedMembers(t *testing.T) {
	e := newEnv(t)
	src := &bkexporter.Source{Ref: e.ref(nil, e.blob(layerOf(t, old, 100, "a", "b", "c", "d"))), Metadata: profileOf(t, "b")}
	members := func(minChunk string) int {
		desc, err := e.export(src, with(attrs{"force-compression": "true", "estargz-min-chunk-size": minChunk}))
		require.NoError(t, err)
		layer := e.image(desc).Layers[0]
		require.Equal(t, "b", e.names(layer)[0])
		blob := e.read(layer)
		r, err := estargz.Open(bytes.NewReader(blob), int64(len(blob)), estargz.OpenOptions{})
		require.NoError(t, err)
		at := map[int64]bool{}
		for _, f := range r.Entries() {
			at[f.Offset] = true
		}
		return len(at)
	}
	require.Equal(t, 5, members("0"))
	require.Equal(t, 2, members("64KiB"), "b, and behind the landmark's the others")
}

// A layer that claims to be eStargz and is not, or whose contents are not those
// of its TOC, is exported as it is. The others get their order.
func TestUnorderableLayers(t *testing.T) {
	e := newEnv(t)
	falseTOC := describe(t, layerOf(t, old, 100, "plain"))
	falseTOC.Annotations[estargz.TOCDigestAnnotation] = digest.FromString("no TOC").String()
	plain := e.pulled(layerOf(t, old, 100, "plain"), falseTOC)
	falseTOC.MediaType = ocispecs.MediaTypeImageLayerZstd
	zstd := e.pulled(layerOf(t, old, 100, "zstd"), falseTOC)
	blob, desc := eStargz(t, tarOf(t, old, 100, "damaged-a", "damaged-b"))
	blob[40] ^= 0xff // in the deflate stream of the first header
	broken := e.pulled(blob, desc)
	good := e.eStargz(tarOf(t, old, 100, "good-a", "good-b"))

	src := &bkexporter.Source{Ref: e.ref(nil, plain, zstd, broken, good), Metadata: profileOf(t, "damaged-b", "good-b")}
	image, err := e.export(src, with(nil))
	require.NoError(t, err)
	layers := e.image(image).Layers
	for i, want := range []ocispecs.Descriptor{plain, zstd, broken} {
		require.Equal(t, want.Digest, layers[i].Digest, "layer %d", i)
	}
	require.Equal(t, "good-b", e.names(layers[3])[0])
}

// A profile without files leaves all layers as they are.
func TestEmptyProfile(t *testing.T) {
	e := newEnv(t)
	layer := e.eStargz(tarOf(t, old, 100, "a", "b"))
	image, err := e.export(&bkexporter.Source{Ref: e.ref(nil, layer), Metadata: profileOf(t)}, with(nil))
	require.NoError(t, err)
	require.Equal(t, layer.Digest, e.image(image).Layers[0].Digest)
}

// Each profile makes another blob of a layer. The last ones are kept, and found
// again.
func TestOrdersAreFew(t *testing.T) {
	e := newEnv(t)
	var names []string
	for i := range 12 {
		names = append(names, fmt.Sprintf("file%02d", i))
	}
	layer := e.eStargz(tarOf(t, old, 100, names...))
	src := &bkexporter.Source{Ref: e.ref(nil, layer)}
	var made []string
	for _, name := range names {
		src.Metadata = profileOf(t, name)
		image, err := e.export(src, with(nil))
		require.NoError(t, err)
		made = append(made, e.image(image).Layers[0].Digest.String())
	}
	info, err := e.cs.Info(e.ctx, layer.Digest)
	require.NoError(t, err)
	var kept []string
	for key, value := range info.Labels {
		if strings.HasPrefix(key, "containerd.io/gc.ref.content.buildkitd-esgz.ordered-") {
			kept = append(kept, value)
		}
	}
	require.ElementsMatch(t, made[4:], kept)

	// One that is used again stays.
	for _, name := range []string{names[4], names[0]} {
		src.Metadata = profileOf(t, name)
		image, err := e.export(src, with(nil))
		require.NoError(t, err)
		require.Contains(t, made, e.image(image).Layers[0].Digest.String())
	}
	info, err = e.cs.Info(e.ctx, layer.Digest)
	require.NoError(t, err)
	require.Contains(t, slices.Collect(maps.Values(info.Labels)), made[4])
	require.NotContains(t, slices.Collect(maps.Values(info.Labels)), made[5])
}

// A large file is put first if most of it was read. What was read of it may not
// be known.
func TestWorthwhile(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		size   int64
		ranges []profile.Range
		want   bool
	}{
		"small, unknown":      {mib, nil, true},
		"large, unknown":      {64 * mib, nil, true},
		"very large, unknown": {5 << 30, nil, false},
		"very large, read":    {5 << 30, []profile.Range{{Offset: 0, Size: 5 << 30}}, true},
		"little was read":     {5 << 30, []profile.Range{{Offset: 0, Size: mib}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, worthwhile(profile.File{Path: "a", Size: c.size, Ranges: c.ranges}))
		})
	}
}
