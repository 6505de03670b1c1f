package frontend

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
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

func TestPlatformsOfIndex(t *testing.T) {
	at := func(ps ...*ocispecs.Platform) *ocispecs.Index {
		index := &ocispecs.Index{}
		for _, p := range ps {
			index.Manifests = append(index.Manifests, ocispecs.Descriptor{Platform: p})
		}
		return index
	}
	v8 := arm64
	v8.Variant = "v8"
	attestation := ocispecs.Platform{OS: "unknown", Architecture: "unknown"}
	require.Empty(t, platformsOf(nil))
	require.Empty(t, platformsOf(at(nil)))
	require.Equal(t, []ocispecs.Platform{amd64, v8}, platformsOf(at(&amd64, &attestation, &v8, &arm64, nil)))
}
