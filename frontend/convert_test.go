package frontend

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

func converting(source string, attrs ...string) map[string]string {
	m := estargz(attrs...)
	m[attrConvert] = source
	return m
}

func TestRequestsToConvert(t *testing.T) {
	const app = "docker.io/library/app:latest"
	llb := asking("a", converting("app", "", "none"))
	llb.Definition = &pb.Definition{Def: [][]byte{nil}}
	for name, tc := range map[string]struct {
		req         *controlapi.SolveRequest
		source, err string
		profiles    int
	}{
		"with a profile":            {req: asking("a", converting("app")), source: app, profiles: 1},
		"without a profile":         {req: asking("a", converting("app", "", "none")), source: app},
		"the same image twice":      {req: asking("a", converting("app", "", "none"), converting(app), estargz()), source: app, profiles: 1},
		"two images":                {req: asking("a", converting("app"), converting("app:2")), err: "not both " + app + " and docker.io/library/app:2"},
		"no reference":              {req: asking("a", converting("")), err: "reference of an image"},
		"with RUN steps":            {req: asking("a", converting("app", "", "run")), err: "no RUN steps"},
		"with a stage":              {req: asking("a", converting("app", "", "entrypoint+stage")), err: "no stages"},
		"with a stage beside it":    {req: asking("a", converting("app"), estargz("", "stage")), err: "no stages"},
		"of what is given as LLB":   {req: llb, err: "given as LLB"},
		"by another compression":    {req: asking("a", map[string]string{attrConvert: "app"})},
		"an exporter without files": {req: asking("a", estargz("", "none"))},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewRequests("estargz", profile.Default())
			err := during(t, r, tc.req, func(ctx context.Context) {
				w := r.of(ctx)
				if tc.source == "" {
					require.Nil(t, w)
					return
				}
				require.Equal(t, tc.source, w.source)
				require.Len(t, w.requests, tc.profiles)
			})
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				return
			}
			require.NoError(t, err)
		})
	}
}

// An imageBridge is a fakeBridge with one image, whose manifests are blobs.
type imageBridge struct {
	*fakeBridge
	blobs
	root    digest.Digest
	configs map[string][]byte // by platform, "" for the builder's
	source  string            // to convert, if it is another one
	refusal error             // of an index without the platform, if it is another one
}

type blobs map[digest.Digest][]byte

func (b blobs) add(t *testing.T, v any) digest.Digest {
	raw, err := json.Marshal(v)
	require.NoError(t, err)
	d := digest.FromBytes(raw)
	b[d] = raw
	return d
}

func (b blobs) ReaderAt(_ context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	raw, ok := b[desc.Digest]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	return blob{bytes.NewReader(raw)}, nil
}

type blob struct{ *bytes.Reader }

func (blob) Close() error { return nil }

func (b *imageBridge) ResolveSourceMetadata(_ context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	if _, at, _ := strings.Cut(op.Identifier, "@"); at != "" && at != b.root.String() {
		return b.resolveManifest(op, digest.Digest(at))
	}
	id := ""
	if p := opt.ImageOpt.Platform; p != nil {
		id = platforms.FormatAll(*p)
	}
	config, ok := b.configs[id]
	if !ok && b.refusal != nil {
		return nil, b.refusal
	}
	if !ok {
		return nil, b.noMatch()
	}
	return &sourceresolver.MetaResponse{Op: op, Image: &sourceresolver.ResolveImageResponse{Digest: b.root, Config: config}}, nil
}

// noMatch is BuildKit's error. It says the digest of the index only if it has read a
// manifest.
func (b *imageBridge) noMatch() error {
	var index ocispecs.Index
	require.NoError(b.t, json.Unmarshal(b.blobs[b.root], &index))
	in := ""
	for _, m := range index.Manifests {
		if m.Platform == nil {
			in = " " + b.root.String()
		}
	}
	return fmt.Errorf("no match for platform in manifest%s: %w", in, errdefs.ErrNotFound)
}

// resolveManifest answers for a manifest by its own digest.
func (b *imageBridge) resolveManifest(op *pb.SourceOp, d digest.Digest) (*sourceresolver.MetaResponse, error) {
	var manifest ocispecs.Manifest
	if err := json.Unmarshal(b.blobs[d], &manifest); err != nil {
		return nil, errdefs.ErrNotFound
	}
	if !images.IsConfigType(manifest.Config.MediaType) {
		return nil, errors.New("encountered unknown type; children may not be fetched")
	}
	return &sourceresolver.MetaResponse{Op: op, Image: &sourceresolver.ResolveImageResponse{Digest: d, Config: b.blobs[manifest.Config.Digest]}}, nil
}

// addImage adds the manifest and the config of an image.
func (b *imageBridge) addImage(t *testing.T, p ocispecs.Platform) (manifest ocispecs.Descriptor, config []byte) {
	c := ocispecs.Image{Platform: p, Config: ocispecs.ImageConfig{Cmd: []string{"serve"}}}
	c.RootFS.DiffIDs = []digest.Digest{digest.FromString(p.Architecture)}
	c.History = []ocispecs.History{{Created: &time.Time{}}}
	of := b.add(t, c)
	return b.addManifest(t, ocispecs.Manifest{
		Config: ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageConfig, Digest: of}, Layers: []ocispecs.Descriptor{{}},
	}), b.blobs[of]
}

func (b *imageBridge) addManifest(t *testing.T, m ocispecs.Manifest) ocispecs.Descriptor {
	m.MediaType = ocispecs.MediaTypeImageManifest
	d := b.add(t, m)
	return ocispecs.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(b.blobs[d]))}
}

// newImageBridge has an index with an image for each of the platforms.
func newImageBridge(t *testing.T, ps ...ocispecs.Platform) *imageBridge {
	b := &imageBridge{fakeBridge: &fakeBridge{t: t}, blobs: blobs{}, configs: map[string][]byte{}}
	index := ocispecs.Index{MediaType: ocispecs.MediaTypeImageIndex}
	for _, p := range ps {
		manifest, config := b.addImage(t, p)
		manifest.Platform = &p
		index.Manifests = append(index.Manifests, manifest)
		b.configs[platforms.FormatAll(p)] = config
	}
	b.configs[""] = b.configs[platforms.FormatAll(amd64)]
	b.root = b.add(t, index)
	return b
}

func (b *imageBridge) convert(t *testing.T, opt map[string]string) (*frontend.Result, error) {
	ctx, w := wishing(t, estargz())
	w.source = cmp.Or(b.source, "docker.io/library/app:latest")
	o := options()
	o.Content = b.blobs
	res, err := New(nil, o).Solve(ctx, b, nil, opt, nil, "sid", nil)
	release(t.Context(), res)
	require.Zero(t, b.alive, "results that nobody releases")
	return res, err
}

// The caches of a build are asked for the image's profile as well.
func TestConvertImportsCache(t *testing.T) {
	b := newImageBridge(t, amd64)
	_, err := b.convert(t, map[string]string{"cache-imports": `[{"Type":"registry","Attrs":{"ref":"cache"}}]`})
	require.NoError(t, err)
	require.Len(t, b.solved, 2, "the image, and its profile")
	for _, req := range b.solved {
		require.Equal(t, testCache, req.CacheImports)
	}
	_, err = b.convert(t, map[string]string{"cache-imports": "none"})
	require.ErrorContains(t, err, "cache-imports=none")
}

// Without a cache the workload runs again.
func TestConvertNoCache(t *testing.T) {
	for _, noCache := range []bool{true, false} {
		b, opt := newImageBridge(t, amd64), map[string]string{}
		if noCache {
			opt["no-cache"] = ""
		}
		_, err := b.convert(t, opt)
		require.NoError(t, err)
		g, err := parse(b.solved[1].Definition)
		require.NoError(t, err)
		require.Equal(t, noCache, g.ops[digest.Digest(g.head.Digest)].metadata.IgnoreCache)
	}
}

// An image of another platform, even of one whose programs run, is not passed off as
// what was asked for.
func TestConvertPlatforms(t *testing.T) {
	i386 := platforms.MustParse("linux/386")
	for name, tc := range map[string]struct {
		wanted, err string
		found       []string
	}{
		"all":          {"", "", []string{"linux/amd64", "linux/arm64"}},
		"one":          {"linux/arm64", "", []string{"linux/arm64"}},
		"one twice":    {"linux/arm64,linux/arm64/v8,linux/arm64", "", []string{"linux/arm64"}},
		"none":         {"linux/s390x", "nothing for linux/s390x; choose what it has with --platform", nil},
		"compatible":   {"linux/amd64,linux/arm", "is for linux/arm64, not for linux/arm: choose", nil},
		"no platform":  {"linux/", "platform=linux/:", nil},
		"not builders": {"", "nothing for this builder's platform; choose", nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := newImageBridge(t, amd64, arm64)
			b.configs["linux/arm"] = b.configs["linux/arm64"]
			if name == "not builders" {
				delete(b.configs, "")
			}
			opt := map[string]string{}
			if tc.wanted != "" {
				opt["platform"] = tc.wanted
			}
			res, err := b.convert(t, opt)
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				require.ErrorContains(t, err, attrConvert)
				return
			}
			require.NoError(t, err)
			all, err := exptypes.ParsePlatforms(res.Metadata)
			require.NoError(t, err)
			var found []string
			for _, p := range all.Platforms {
				found = append(found, p.ID)
			}
			require.Equal(t, tc.found, found)
		})
	}
	b := newImageBridge(t, i386)
	b.configs["linux/amd64"] = b.configs["linux/386"]
	_, err := b.convert(t, map[string]string{"platform": "linux/amd64"})
	require.ErrorContains(t, err, "is for linux/386, not for linux/amd64")
}

// A config that does not say what its layers unpack to is not one of an image without
// layers.
func TestConvertLacksDiffIDs(t *testing.T) {
	for diffIDs, number := range map[string]string{`[]`: "0", `null`: "0", `["sha256:a","sha256:b"]`: "2"} {
		b := newImageBridge(t, amd64)
		b.configs["linux/amd64"] = []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":` + diffIDs + `}}`)
		_, err := b.convert(t, map[string]string{})
		require.ErrorContains(t, err, attrConvert+": docker.io/library/app:latest@"+b.root.String()+" for linux/amd64: ")
		require.ErrorContains(t, err, "(rootfs.diff_ids, "+number+") is not that of layers in the manifest (1)")
	}
}

func TestConvertRefuses(t *testing.T) {
	for k, v := range map[string]string{
		"target": "a", "label:a": "b", "no-cache": "a", "context:app": "docker-image://other",
	} {
		_, err := newImageBridge(t, amd64).convert(t, map[string]string{k: v})
		require.ErrorContains(t, err, attrConvert)
		require.ErrorContains(t, err, "leave "+k+" out")
	}
}

func TestConvertedHistory(t *testing.T) {
	at := func(sec int64) *time.Time { tm := time.Unix(sec, 0).UTC(); return &tm }
	for name, tc := range map[string]struct {
		created       *time.Time
		history, want []ocispecs.History
	}{
		"complete": {at(9), []ocispecs.History{{Created: at(1)}, {Created: at(2), EmptyLayer: true}, {Created: at(3)}}, nil},
		"none":     {nil, nil, []ocispecs.History{{Created: at(0)}, {Created: at(0)}}},
		"too short": {at(9), []ocispecs.History{{Created: at(1)}, {Created: at(2), EmptyLayer: true}},
			[]ocispecs.History{{Created: at(1)}, {Created: at(2), EmptyLayer: true}, {Created: at(9)}}},
		"without times": {at(9), []ocispecs.History{{CreatedBy: "a"}, {EmptyLayer: true}, {Created: at(3)}},
			[]ocispecs.History{{CreatedBy: "a", Created: at(9)}, {EmptyLayer: true, Created: at(9)}, {Created: at(3)}}},
	} {
		t.Run(name, func(t *testing.T) {
			config := ocispecs.Image{Created: tc.created, History: tc.history, Author: "somebody"}
			config.RootFS.DiffIDs = []digest.Digest{"sha256:a", "sha256:b"}
			raw, err := json.Marshal(config)
			require.NoError(t, err)
			got, err := (&resolved{raw: raw, config: config}).withHistory()
			require.NoError(t, err)
			if tc.want == nil {
				require.Equal(t, string(raw), string(got), "to the byte")
				return
			}
			config.History = tc.want
			want, err := json.Marshal(config)
			require.NoError(t, err)
			require.JSONEq(t, string(want), string(got))
		})
	}
}

// All that an index has is converted, or else left out with a warning.
func TestConvertIndex(t *testing.T) {
	b := newImageBridge(t)
	v8 := arm64
	v8.Variant = "v8"
	image := func(p ocispecs.Platform, named *ocispecs.Platform, note string) ocispecs.Descriptor {
		m, config := b.addImage(t, p)
		m.Platform, m.Annotations = named, map[string]string{"note": note}
		if named != nil {
			b.configs[platforms.FormatAll(p)] = config
		}
		return m
	}
	s390x, riscv := platforms.MustParse("linux/s390x"), platforms.MustParse("linux/riscv64")
	attestation := image(ocispecs.Platform{OS: "unknown", Architecture: "unknown"}, &ocispecs.Platform{OS: "unknown", Architecture: "unknown"}, "")
	own := b.addManifest(t, ocispecs.Manifest{Config: ocispecs.Descriptor{MediaType: "application/vnd.example"}})
	signature := b.addManifest(t, ocispecs.Manifest{Config: ocispecs.DescriptorEmptyJSON, ArtifactType: "application/vnd.signature"})
	signature.ArtifactType = "application/vnd.signature"
	first := image(v8, &v8, "b")
	second := image(ocispecs.Platform{OS: "linux", Architecture: "arm64", OSVersion: ""}, &arm64, "c")
	index := ocispecs.Index{MediaType: ocispecs.MediaTypeImageIndex, Manifests: []ocispecs.Descriptor{
		image(amd64, &amd64, "a"), attestation, first, second, first,
		image(s390x, nil, "d"), image(riscv, &ocispecs.Platform{}, "e"),
		image(ocispecs.Platform{}, nil, ""), own, signature,
	}}
	b.configs[""], b.root = b.configs["linux/amd64"], b.add(t, index)

	res, err := b.convert(t, map[string]string{})
	require.NoError(t, err)
	all, err := exptypes.ParsePlatforms(res.Metadata)
	require.NoError(t, err)
	notes := map[string]string{}
	for _, p := range all.Platforms {
		notes[p.ID] = string(res.Metadata[exptypes.AnnotationManifestDescriptorKey(&p.Platform, "note")])
	}
	require.Equal(t, map[string]string{"linux/amd64": "a", "linux/arm64": "b", "linux/s390x": "d", "linux/riscv64": "e"}, notes)
	var left []string
	for _, w := range b.warnings {
		if strings.HasPrefix(w, attrConvert) {
			left = append(left, w)
		}
	}
	require.Len(t, left, 4)
	require.Contains(t, left[0], "it is for linux/arm64, and so is "+first.Digest.String())
	require.Contains(t, left[1], "neither the index nor its config names a platform")
	require.Contains(t, left[2], "it is no image, but has a config of type application/vnd.example")
	require.Contains(t, left[3], "it is no image, but application/vnd.signature")
}

// An index in an index is not passed over, nor is one of its images taken for all.
func TestConvertNestedIndex(t *testing.T) {
	for name, p := range map[string]*ocispecs.Platform{"unnamed": nil, "named": &amd64} {
		t.Run(name, func(t *testing.T) {
			b := newImageBridge(t, amd64)
			nested := ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageIndex, Digest: b.root, Size: int64(len(b.blobs[b.root])), Platform: p}
			_, _, err := b.convertIndex(t, nested)
			require.ErrorContains(t, err, "has the index "+nested.Digest.String())
			_, err = b.convert(t, map[string]string{"platform": "linux/amd64"})
			require.NoError(t, err)
		})
	}
}

// convertIndex converts an index of these manifests. It returns the platforms and what
// was left out.
func (b *imageBridge) convertIndex(t *testing.T, ms ...ocispecs.Descriptor) (found map[string]string, left []string, err error) {
	b.root = b.add(t, ocispecs.Index{MediaType: ocispecs.MediaTypeImageIndex, Manifests: ms})
	res, err := b.convert(t, map[string]string{})
	if err != nil {
		return nil, nil, err
	}
	all, err := exptypes.ParsePlatforms(res.Metadata)
	require.NoError(t, err)
	found = map[string]string{}
	for _, p := range all.Platforms {
		found[p.ID] = string(res.Metadata[exptypes.ExporterImageConfigKey+"/"+p.ID])
	}
	for _, w := range b.warnings {
		if strings.HasPrefix(w, attrConvert) {
			left = append(left, w)
		}
	}
	return found, left, nil
}

// A manifest for which the index names the platform is taken, even after one whose
// config names it. BuildKit takes that too.
func TestConvertPrefersNamed(t *testing.T) {
	b := newImageBridge(t, amd64)
	unnamed := b.addManifest(t, ocispecs.Manifest{
		Config: ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageConfig, Digest: digest.FromBytes(b.configs[""])}, Layers: []ocispecs.Descriptor{{}},
		Annotations: map[string]string{"note": "another"},
	})
	named, config := b.addImage(t, amd64)
	named.Platform = &amd64
	found, left, err := b.convertIndex(t, unnamed, named)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"linux/amd64": string(config)}, found)
	require.Len(t, left, 1)
	require.Contains(t, left[0], "leaves out manifest "+unnamed.Digest.String())
	require.Contains(t, left[0], "it is for linux/amd64, and so is "+named.Digest.String())
}

// BuildKit looks at the first of the manifests without a platform only. That it is
// not for this builder does not hide the others.
func TestConvertUnnamedOfOtherPlatform(t *testing.T) {
	b := newImageBridge(t)
	delete(b.configs, "")
	first, arm := b.addImage(t, arm64)
	second, amd := b.addImage(t, amd64)
	found, left, err := b.convertIndex(t, first, second)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"linux/arm64": string(arm), "linux/amd64": string(amd)}, found)
	require.Empty(t, left)
}

// That the first manifest without a platform is no image does not hide the others if the
// index is named by its digest. BuildKit's error does not say what that is.
func TestConvertUnnamedArtifactFirst(t *testing.T) {
	b := newImageBridge(t)
	delete(b.configs, "")
	artifact := b.addManifest(t, ocispecs.Manifest{Config: ocispecs.DescriptorEmptyJSON})
	image, config := b.addImage(t, amd64)
	b.root = b.add(t, ocispecs.Index{MediaType: ocispecs.MediaTypeImageIndex, Manifests: []ocispecs.Descriptor{artifact, image}})
	b.refusal = errors.New("encountered unknown type; children may not be fetched")
	b.source = "docker.io/library/app:latest@" + b.root.String()
	found, left, err := b.convertIndex(t, artifact, image)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"linux/amd64": string(config)}, found)
	require.Len(t, left, 1)

	b.source = ""
	_, _, err = b.convertIndex(t, artifact, image)
	require.ErrorIs(t, err, b.refusal)
}

// What is no manifest is not fetched.
func TestConvertUnknownMediaType(t *testing.T) {
	for name, p := range map[string]*ocispecs.Platform{"unnamed": nil, "named": {OS: "linux", Architecture: "s390x"}} {
		t.Run(name, func(t *testing.T) {
			b := newImageBridge(t)
			image, config := b.addImage(t, amd64)
			image.Platform = &amd64
			b.configs[""], b.configs["linux/amd64"] = config, config
			unknown := ocispecs.Descriptor{MediaType: "application/vnd.example", Digest: digest.FromString("no blob"), Platform: p}
			found, left, err := b.convertIndex(t, unknown, image)
			require.NoError(t, err)
			require.Equal(t, map[string]string{"linux/amd64": string(config)}, found)
			require.Len(t, left, 1)
			require.Contains(t, left[0], `it is no manifest, but of type "application/vnd.example"`)
		})
	}
}

// The type of the config, not that of the artifact, tells an image.
func TestConvertImageWithArtifactType(t *testing.T) {
	for name, p := range map[string]*ocispecs.Platform{"unnamed": nil, "named": &amd64} {
		t.Run(name, func(t *testing.T) {
			b := newImageBridge(t)
			image, config := b.addImage(t, amd64)
			image.Platform, image.ArtifactType = p, "application/vnd.example"
			b.configs[""], b.configs["linux/amd64"] = config, config
			artifact := b.addManifest(t, ocispecs.Manifest{Config: ocispecs.DescriptorEmptyJSON, ArtifactType: "application/vnd.example"})
			artifact.Platform, artifact.ArtifactType = p, "application/vnd.example"
			found, left, err := b.convertIndex(t, image, artifact)
			require.NoError(t, err)
			require.Equal(t, map[string]string{"linux/amd64": string(config)}, found)
			require.Len(t, left, 1)
			require.Contains(t, left[0], artifact.Digest.String())
			require.Contains(t, left[0], "it is no image, but application/vnd.example")
		})
	}
}
