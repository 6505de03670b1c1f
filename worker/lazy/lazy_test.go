package lazy

import (
	"maps"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/stargz-snapshotter/fs/config"
	"github.com/opencontainers/go-digest"
	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

func TestConfig(t *testing.T) {
	c, ignored, err := ParseConfig(map[string]any{
		"no_background_fetch": true, "max_concurrency": int64(3), "deadline": "90s", "fuse": map[string]any{"passthrough": false},
	})
	require.NoError(t, err)
	require.Empty(t, ignored)
	require.True(t, c.NoBackgroundFetch)
	require.Equal(t, 3, c.Connections)
	require.Equal(t, 90*time.Second, c.Deadline.Duration)
	require.True(t, c.noPassthrough())

	c, _, err = ParseConfig(nil)
	require.NoError(t, err)
	require.False(t, c.noPassthrough())
	require.Equal(t, 2*time.Minute, c.withDefaults().Deadline.Duration)

	for name, bad := range map[string]map[string]any{
		"no_background_fetch": {"no_background_fetch": "perhaps"},
		"max_concurrency":     {"max_concurrency": int64(-1)},
		"bytes_in_flight":     {"bytes_in_flight": int64(-1)},
		"deadline":            {"deadline": "-1s"},
	} {
		bad["http_cache_type"] = "memory" // ignored, but hides nothing
		_, _, err := ParseConfig(bad)
		require.ErrorContains(t, err, name)
	}
}

// Every configuration of the stock snapshotter is one of ours.
func TestStockConfig(t *testing.T) {
	text, err := toml.Marshal(config.Config{MaxConcurrency: 3, BlobConfig: config.BlobConfig{ValidInterval: 60}})
	require.NoError(t, err)
	var section map[string]any
	require.NoError(t, toml.Unmarshal(text, &section))
	c, ignored, err := ParseConfig(section)
	require.NoError(t, err)
	require.Equal(t, 3, c.Connections)
	require.Contains(t, ignored, "blob")
	require.Contains(t, ignored, "resolve_result_entry")
	require.NotContains(t, ignored, "fuse.passthrough")
}

func TestLabels(t *testing.T) {
	type asked struct{ ref, session string }
	var calls []asked
	l := &Layers{opts: Options{Hosts: func(ref reference.Spec, session string) ([]docker.RegistryHost, error) {
		calls = append(calls, asked{ref.String(), session})
		return nil, nil
	}}}
	layer, above, toc := digest.FromString("layer").String(), digest.FromString("above").String(), digest.FromString("toc").String()
	labels := map[string]string{
		refLabel:                    "registry.example/dir/one:latest",
		digestLabel:                 layer,
		estargz.TOCDigestAnnotation: toc,
		layersLabel:                 layer + "," + above,
	}

	id, err := l.ID(labels)
	require.NoError(t, err)
	key, err := parseID(id)
	require.NoError(t, err)
	require.Equal(t, layer, key.Blob.String())
	require.Equal(t, toc, key.TOC.String())
	require.Equal(t, []digest.Digest{digest.Digest(above)}, others(labels))
	places := l.places(labels)
	require.Len(t, places, 1, "a snapshot of an earlier run, of which no build knows yet")
	require.Equal(t, "registry.example", places[0].Registry)
	require.Equal(t, "dir/one", places[0].Repository)

	labels[refLabel+".a"] = "registry.example/dir/one:latest"
	labels[sessionLabel+".0.a"], labels[sessionLabel+".1.a"] = "x", "y"
	labels[sessionLabel+".3.a"] = "after a gap"
	labels[refLabel+".b"] = "other.example/two:latest"
	for _, place := range l.places(labels) {
		_, err := place.Hosts()
		require.NoError(t, err)
	}
	require.Equal(t, []asked{{"registry.example/dir/one:latest", "x"}, {"registry.example/dir/one:latest", "y"}, {"other.example/two:latest", ""}}, calls)

	labels[estargz.TOCDigestAnnotation+".a"], labels["any.b"], labels[sessionLabel+".0.c"] = toc, "thing", "z"
	labels["not.for-one-call"] = "stays"
	require.Equal(t, map[string]string{
		refLabel:                    "registry.example/dir/one:latest",
		digestLabel:                 layer,
		estargz.TOCDigestAnnotation: toc,
		layersLabel:                 layer + "," + above, "not.for-one-call": "stays",
	}, KeptLabels(labels))

	kept := KeptLabels(labels)
	forged := maps.Clone(kept)
	forged[sessionLabel+".1"] = "another's" // an annotation of the image
	call := CallLabels(forged, []string{"x"})
	require.Len(t, l.places(call), 1)
	call = CallLabels(kept, []string{"x", "y"})
	require.Len(t, l.places(call), 2)
	maps.Copy(call, kept)
	require.Equal(t, kept, KeptLabels(call))

	delete(labels, estargz.TOCDigestAnnotation)
	_, err = l.ID(labels)
	require.ErrorContains(t, err, "no eStargz")
	_, err = parseID("sha256:short@" + toc)
	require.ErrorContains(t, err, "sha256:short")
}
