package exporter

import (
	"bytes"
	"context"
	"encoding/json"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	bkexporter "github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/llbsolver/compat"
	"github.com/moby/buildkit/solver/result"
	bkcompression "github.com/moby/buildkit/util/compression"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression"
)

var (
	old    = time.Unix(1_000_000_000, 0).UTC()
	middle = time.Unix(1_100_000_000, 0).UTC()
	recent = time.Unix(1_200_000_000, 0).UTC()
)

func TestExport(t *testing.T) {
	e := newEnv(t)
	src := &bkexporter.Source{Ref: e.ref(nil, e.blob(layerOf(t, old, 100, "a")), e.blob(layerOf(t, recent, 100_000, "b", "c")))}
	a := with(attrs{"force-compression": "true", "annotation.colour": "blue", "estargz-chunk-size": "64KiB"})
	desc, err := e.export(src, a)
	require.NoError(t, err)
	img := e.image(desc)
	require.Len(t, img.Layers, 2)
	require.Equal(t, map[string]time.Time{"a": old}, e.checkLayer(img, 0))
	require.Equal(t, map[string]time.Time{"b": recent, "c": recent}, e.checkLayer(img, 1))
	require.Equal(t, "blue", img.Annotations["colour"])

	again, err := e.export(src, a)
	require.NoError(t, err)
	require.Equal(t, desc.Digest, again.Digest)
}

// TestNotForced leaves layers that exist.
func TestNotForced(t *testing.T) {
	e := newEnv(t)
	layer := e.blob(layerOf(t, old, 100, "a"))
	desc, err := e.export(&bkexporter.Source{Ref: e.ref(nil, layer)}, with(nil))
	require.NoError(t, err)
	require.Equal(t, layer.Digest, e.image(desc).Layers[0].Digest)
}

// TestKilledBeforeLabels is a daemon that was killed when BuildKit's cache record
// named a layer written here, and BuildKit had not yet noted its annotations.
func TestKilledBeforeLabels(t *testing.T) {
	e := newEnv(t)
	compress, finalize := compression.New(nil, compression.Options{}).Compress(e.ctx, bkcompression.Config{})
	var blob bytes.Buffer
	w, err := compress(&blob, ocispecs.MediaTypeImageLayerGzip)
	require.NoError(t, err)
	_, err = w.Write(tarOf(t, old, 100, "a"))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	layer := e.blob(blob.Bytes())
	_, err = finalize(e.ctx, e.cs)
	require.NoError(t, err)

	for _, force := range []string{"false", "true"} {
		desc, err := e.export(&bkexporter.Source{Ref: e.ref(nil, layer)}, with(attrs{"force-compression": force}))
		require.NoError(t, err)
		img := e.image(desc)
		require.Equal(t, layer.Digest, img.Layers[0].Digest)
		e.checkLayer(img, 0)
	}
}

func TestNoLayers(t *testing.T) {
	e := newEnv(t)
	for _, a := range []attrs{with(nil), with(attrs{"force-compression": "true", "rewrite-timestamp": "true", "source-date-epoch": "1100000000"})} {
		desc, err := e.export(&bkexporter.Source{}, a)
		require.NoError(t, err)
		require.Empty(t, e.image(desc).Layers)
	}
}

// TestOtherCompressions are the same image with and without us.
func TestOtherCompressions(t *testing.T) {
	for _, name := range []string{"gzip", "zstd", "uncompressed"} {
		t.Run(name, func(t *testing.T) {
			var digests []digest.Digest
			for _, wrapped := range []bool{true, false} {
				e := newEnv(t)
				src := &bkexporter.Source{
					Ref:      e.ref(nil, e.blob(layerOf(t, recent, 1000, "a"))),
					Metadata: map[string][]byte{exptypes.ExporterImageConfigKey: []byte(`{"architecture":"amd64","os":"linux","created":"2001-09-09T01:46:40Z"}`)},
				}
				// Only the history has the time of the build in it.
				a := attrs{"compression": name, "force-compression": "true", "rewrite-timestamp": "true", "source-date-epoch": "1100000000"}
				var exp bkexporter.Exporter = e.stock
				if wrapped {
					exp = Wrap("image", e.stock, e.cs, nil, noDefaults(t))
				}
				inst, err := exp.Resolve(e.ctx, 0, a)
				require.NoError(t, err)
				_, _, desc, err := inst.Export(e.ctx, src, bkexporter.ExportBuildInfo{CompatibilityVersion: compat.CompatibilityVersionCurrent})
				require.NoError(t, err)
				digests = append(digests, desc.Descriptor().Digest)
				require.NoError(t, desc.Release())
			}
			require.Equal(t, digests[1], digests[0])
		})
	}
}

// TestChunkSizesSideBySide exports one layer with several chunk sizes at once,
// and then again: nobody may be handed somebody else's.
func TestChunkSizesSideBySide(t *testing.T) {
	e := newEnv(t)
	// The small layer is the same blob whatever the chunk size.
	src := &bkexporter.Source{Ref: e.ref(nil, e.blob(layerOf(t, old, 10, "small")), e.blob(layerOf(t, old, 1<<20, "large")))}
	sizes := []string{"64KiB", "128KiB", "256KiB"}
	got := make([]digest.Digest, 3*len(sizes))
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			inst, err := Wrap("image", e.stock, e.cs, nil, noDefaults(t)).Resolve(e.ctx, i, with(attrs{"force-compression": "true", "estargz-chunk-size": sizes[i%len(sizes)]}))
			if err == nil {
				var desc bkexporter.DescriptorReference
				if _, _, desc, err = inst.Export(e.ctx, src, bkexporter.ExportBuildInfo{CompatibilityVersion: compat.CompatibilityVersionCurrent}); err == nil {
					defer desc.Release()
					got[i] = e.image(desc.Descriptor()).Layers[1].Digest
				}
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range got {
		require.Equal(t, got[i%len(sizes)], got[i])
	}
	require.NotEqual(t, got[0], got[1])
	require.NotEqual(t, got[1], got[2])
}

// TestLazyBase leaves an eStargz layer in its registry and pulls a gzip one.
func TestLazyBase(t *testing.T) {
	e := newEnv(t)
	blob, base := eStargz(t, tarOf(t, old, 1000, "base"))
	plainBlob := layerOf(t, old, 1000, "plain")
	plain := describe(t, plainBlob)
	reg := &lazy{
		blobs: map[digest.Digest][]byte{base.Digest: blob, plain.Digest: plainBlob},
		pulls: map[digest.Digest]int{},
	}
	src := &bkexporter.Source{Ref: e.ref([]cache.RefOption{reg.handlers(base, plain)}, base, plain)}
	desc, err := e.export(src, with(attrs{"force-compression": "true", "estargz-chunk-size": "64KiB"}))
	require.NoError(t, err)
	img := e.image(desc)
	require.Equal(t, base.Digest, img.Layers[0].Digest)
	require.Equal(t, base.Annotations["containerd.io/snapshot/stargz/toc.digest"], img.Layers[0].Annotations["containerd.io/snapshot/stargz/toc.digest"])
	require.Zero(t, reg.pulls[base.Digest])
	require.Equal(t, 1, reg.pulls[plain.Digest])
	e.checkLayer(img, 1)
}

func TestRewriteTimestamp(t *testing.T) {
	for _, forced := range []bool{true, false} {
		t.Run(strconv.FormatBool(forced), func(t *testing.T) {
			e := newEnv(t)
			base0, base1 := e.blob(layerOf(t, recent, 100, "base0")), e.blob(layerOf(t, recent, 100, "base1"))
			src := &bkexporter.Source{
				Ref:      e.ref(nil, base0, base1, e.blob(layerOf(t, recent, 100, "new")), e.blob(layerOf(t, old, 100, "old"))),
				Metadata: map[string][]byte{exptypes.ExporterImageBaseConfigKey: baseConfig(t, base0, base1)},
			}
			a := with(attrs{"rewrite-timestamp": "true", "source-date-epoch": "1100000000", "force-compression": strconv.FormatBool(forced)})
			desc, err := e.export(src, a)
			require.NoError(t, err)
			img := e.image(desc)
			if forced {
				require.Equal(t, map[string]time.Time{"base0": recent}, e.checkLayer(img, 0))
				require.Equal(t, map[string]time.Time{"base1": recent}, e.checkLayer(img, 1))
			} else {
				require.Equal(t, base0.Digest, img.Layers[0].Digest)
				require.Equal(t, base1.Digest, img.Layers[1].Digest)
			}
			require.Equal(t, map[string]time.Time{"new": middle}, e.checkLayer(img, 2))
			require.Equal(t, map[string]time.Time{"old": old}, e.checkLayer(img, 3))

			again, err := e.export(src, a)
			require.NoError(t, err)
			require.Equal(t, img.Layers, e.image(again).Layers)

			// A rewritten layer is nobody else's.
			delete(a, "rewrite-timestamp")
			desc, err = e.export(src, with(attrs{"force-compression": "true"}))
			require.NoError(t, err)
			require.Equal(t, map[string]time.Time{"new": recent}, e.checkLayer(e.image(desc), 2))
		})
	}
}

// TestRewriteTimestampOfCache has the layers of the base image as a build cache
// gives them, made eStargz by whoever filled it: no digest tells what they were.
func TestRewriteTimestampOfCache(t *testing.T) {
	e := newEnv(t)
	base := e.eStargz(tarOf(t, recent, 100, "base"))
	src := &bkexporter.Source{
		Ref:      e.ref(nil, base, e.blob(layerOf(t, recent, 100, "new"))),
		Metadata: map[string][]byte{exptypes.ExporterImageBaseConfigKey: baseConfig(t, describe(t, layerOf(t, recent, 100, "base")))},
	}
	desc, err := e.export(src, with(attrs{"rewrite-timestamp": "true", "source-date-epoch": "1100000000", "force-compression": "true"}))
	require.NoError(t, err)
	img := e.image(desc)
	require.Equal(t, base.Digest, img.Layers[0].Digest)
	require.Equal(t, map[string]time.Time{"new": middle}, e.checkLayer(img, 1))
}

// TestEpochOf is which of the several epochs counts.
func TestEpochOf(t *testing.T) {
	attr := with(attrs{"force-compression": "true", "rewrite-timestamp": "true", "source-date-epoch": "1100000000"})
	none := with(attrs{"force-compression": "true", "rewrite-timestamp": "true"})
	off := with(attrs{"force-compression": "true", "rewrite-timestamp": "true", "source-date-epoch": ""})
	for _, tc := range []struct {
		name  string
		attrs attrs
		meta  map[string][]byte
		want  time.Time
	}{
		{"attribute", attr, map[string][]byte{"source.date.epoch": []byte("1000000000")}, middle},
		{"frontend", none, map[string][]byte{"source.date.epoch": []byte("1000000000")}, old},
		{"platform", none, map[string][]byte{"source.date.epoch/" + thisPlatform(): []byte("1000000000")}, old},
		{"nowhere", none, nil, recent},
		{"switched off", off, map[string][]byte{"source.date.epoch": []byte("1000000000")}, recent},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newEnv(t)
			desc, err := e.export(&bkexporter.Source{Ref: e.ref(nil, e.blob(layerOf(t, recent, 100, "a"))), Metadata: tc.meta}, tc.attrs)
			require.NoError(t, err)
			require.Equal(t, map[string]time.Time{"a": tc.want}, e.checkLayer(e.image(desc), 0))
		})
	}
}

// TestPlatforms has a base image, an epoch and provenance for each of two.
func TestPlatforms(t *testing.T) {
	e := newEnv(t)
	baseA, baseB := e.blob(layerOf(t, recent, 100, "base-a")), e.blob(layerOf(t, recent, 100, "base-b"))
	src := &bkexporter.Source{
		Refs: map[string]cache.ImmutableRef{
			"linux/amd64": e.ref(nil, baseA, e.blob(layerOf(t, recent, 100, "a"))),
			"linux/arm64": e.ref(nil, baseB, e.blob(layerOf(t, recent, 100, "b"))),
		},
		Metadata: map[string][]byte{
			exptypes.ExporterPlatformsKey:                        platformsKey(t, "amd64", "arm64"),
			exptypes.ExporterImageConfigKey + "/linux/amd64":     []byte(`{"architecture":"amd64","os":"linux"}`),
			exptypes.ExporterImageConfigKey + "/linux/arm64":     []byte(`{"architecture":"arm64","os":"linux"}`),
			exptypes.ExporterImageBaseConfigKey + "/linux/amd64": baseConfig(t, baseA),
			exptypes.ExporterImageBaseConfigKey + "/linux/arm64": baseConfig(t, baseB),
			"source.date.epoch/linux/amd64":                      []byte("1000000000"),
			"source.date.epoch/linux/arm64":                      []byte("1100000000"),
		},
		Attestations: map[string][]bkexporter.Attestation{
			"linux/amd64": {statement()},
			"linux/arm64": {statement()},
		},
	}
	desc, err := e.export(src, with(attrs{"force-compression": "true", "rewrite-timestamp": "true"}))
	require.NoError(t, err)
	var idx ocispecs.Index
	e.decode(desc, &idx)
	require.Len(t, idx.Manifests, 4)

	a, b := e.image(idx.Manifests[0]), e.image(idx.Manifests[1])
	require.Equal(t, map[string]time.Time{"base-a": recent}, e.checkLayer(a, 0))
	require.Equal(t, map[string]time.Time{"a": old}, e.checkLayer(a, 1))
	require.Equal(t, map[string]time.Time{"base-b": recent}, e.checkLayer(b, 0))
	require.Equal(t, map[string]time.Time{"b": middle}, e.checkLayer(b, 1))

	for i, subject := range idx.Manifests[:2] {
		var m ocispecs.Manifest
		e.decode(idx.Manifests[2+i], &m)
		require.Equal(t, "application/vnd.in-toto+json", m.Layers[0].MediaType)
		require.Equal(t, subject.Digest, m.Subject.Digest)
	}
}

// TestLoneRef is a result whose only reference has another key than its
// platform: BuildKit takes it all the same.
func TestLoneRef(t *testing.T) {
	e := newEnv(t)
	src := &bkexporter.Source{
		Refs: map[string]cache.ImmutableRef{"any": e.ref(nil, e.blob(layerOf(t, recent, 100, "a")))},
		Metadata: map[string][]byte{
			exptypes.ExporterPlatformsKey:   platformsKey(t, "amd64"),
			"source.date.epoch/linux/amd64": []byte("1000000000"),
		},
	}
	desc, err := e.export(src, with(attrs{"force-compression": "true", "rewrite-timestamp": "true"}))
	require.NoError(t, err)
	var idx ocispecs.Index
	e.decode(desc, &idx)
	require.Equal(t, map[string]time.Time{"a": old}, e.checkLayer(e.image(idx.Manifests[0]), 0))
}

func TestBadMetadata(t *testing.T) {
	e := newEnv(t)
	for _, tc := range []struct {
		key, value, want string
	}{
		{exptypes.ExporterImageBaseConfigKey, "{", "base image"},
		{"source.date.epoch", "x", "SOURCE_DATE_EPOCH"},
		{exptypes.ExporterPlatformsKey, "{", "platforms"},
	} {
		_, err := e.export(&bkexporter.Source{
			Ref:      e.ref(nil, e.blob(layerOf(t, old, 10, "a"))),
			Metadata: map[string][]byte{tc.key: []byte(tc.value)},
		}, with(attrs{"rewrite-timestamp": "true"}))
		require.ErrorContains(t, err, tc.want)
	}
}

// TestRef looks at what the stock exporter is given.
func TestRef(t *testing.T) {
	inner := &fakeRef{}
	src := &bkexporter.Source{
		Ref:          inner,
		Refs:         map[string]cache.ImmutableRef{"none": nil},
		Attestations: map[string][]bkexporter.Attestation{"x": {{Ref: inner}}},
	}
	typ := compression.New(nil, compression.Options{})
	i := &instance{config: bkcompression.Config{Type: typ}}
	wrapped, err := i.wrap(src, &report{})
	require.NoError(t, err)
	require.Same(t, inner, src.Ref, "the solver's own source is left alone")
	require.Nil(t, wrapped.Refs["none"])
	require.Same(t, inner, wrapped.Attestations["x"][0].Ref)

	cfg := cacheconfig.RefConfig{PreferNonDistributable: true, Compression: bkcompression.New(bkcompression.EStargz).SetForce(true).SetLevel(3)}
	_, err = wrapped.Ref.Clone().GetRemotes(t.Context(), false, cfg, false, nil)
	require.NoError(t, err)
	cfg.Compression.Type = typ
	require.Equal(t, cfg, inner.asked)
}

// TestCancelled gives up instead of exporting layers with their old timestamps.
func TestCancelled(t *testing.T) {
	e := newEnv(t)
	layer := e.blob(layerOf(t, recent, 100, "a"))
	remote := &solver.Remote{Descriptors: []ocispecs.Descriptor{layer}, Provider: e.cs}
	ctx, cancel := context.WithCancelCause(e.ctx)
	cancel(context.DeadlineExceeded)
	rw := &rewrite{cs: e.cs, config: bkcompression.Config{Type: compression.New(nil, compression.Options{})}, epoch: &middle}
	_, err := rw.remote(ctx, remote, remote)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

type fakeRef struct {
	cache.ImmutableRef
	asked cacheconfig.RefConfig
}

func (r *fakeRef) Clone() cache.ImmutableRef { return r }

func (r *fakeRef) GetRemotes(_ context.Context, _ bool, cfg cacheconfig.RefConfig, _ bool, _ session.Group) ([]*solver.Remote, error) {
	r.asked = cfg
	return nil, nil
}

func baseConfig(t *testing.T, layers ...ocispecs.Descriptor) []byte {
	t.Helper()
	var img ocispecs.Image
	for _, l := range layers {
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, digest.Digest(l.Annotations["containerd.io/uncompressed"]))
	}
	b, err := json.Marshal(img)
	require.NoError(t, err)
	return b
}

func platformsKey(t *testing.T, archs ...string) []byte {
	t.Helper()
	var ps exptypes.Platforms
	for _, arch := range archs {
		ps.Platforms = append(ps.Platforms, exptypes.Platform{ID: "linux/" + arch, Platform: ocispecs.Platform{OS: "linux", Architecture: arch}})
	}
	b, err := json.Marshal(ps)
	require.NoError(t, err)
	return b
}

func thisPlatform() string {
	return platforms.FormatAll(platforms.Normalize(platforms.DefaultSpec()))
}

func statement() bkexporter.Attestation {
	return bkexporter.Attestation{
		Kind:        gatewaypb.AttestationKind_InToto,
		Path:        "provenance.json",
		InToto:      result.InTotoAttestation{PredicateType: "https://slsa.dev/provenance/v1"},
		ContentFunc: func(context.Context) ([]byte, error) { return []byte(`{}`), nil },
	}
}
