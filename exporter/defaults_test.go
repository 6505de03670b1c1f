package exporter

import (
	"maps"
	"testing"

	bkcompression "github.com/moby/buildkit/util/compression"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression"
)

func noDefaults(t *testing.T) Defaults {
	t.Helper()
	d, err := ParseDefaults(nil)
	require.NoError(t, err)
	return d
}

// What a build gives wins, one by one.
func TestDefaults(t *testing.T) {
	d, err := ParseDefaults(map[string]string{
		"chunk-size": "1MiB", "min-chunk-size": "64KiB", "compression-level": "1", "profile": "none",
	})
	require.NoError(t, err)
	require.True(t, d.Profile.None())
	one, nine := 1, 9
	for _, tc := range []struct {
		given attrs
		want  bkcompression.Config
	}{
		{nil, bkcompression.Config{Level: &one, Type: compression.New(nil, compression.Options{ChunkSize: 1 << 20, MinChunkSize: 64 << 10})}},
		{attrs{"estargz-chunk-size": "2MiB", "compression-level": "9"},
			bkcompression.Config{Level: &nine, Type: compression.New(nil, compression.Options{ChunkSize: 2 << 20, MinChunkSize: 64 << 10})}},
		{attrs{"estargz-min-chunk-size": "0"}, bkcompression.Config{Level: &one, Type: compression.New(nil, compression.Options{ChunkSize: 1 << 20})}},
	} {
		given := with(tc.given)
		before := maps.Clone(given)
		inst, err := Wrap("image", newStock(t), nil, nil, d).Resolve(t.Context(), 7, given)
		require.NoError(t, err)
		require.Equal(t, tc.want, inst.Config().Compression())
		require.Equal(t, map[string]string(before), inst.Attrs())
		require.True(t, inst.(*instance).request.None())

		exp, err := WrapCache("local", stockCache, nil, d)(t.Context(), nil, given)
		require.NoError(t, err)
		require.Equal(t, tc.want, exp.Config().Compression)
	}
	inst, err := Wrap("image", newStock(t), nil, nil, d).Resolve(t.Context(), 7, with(attrs{"estargz-profile-idle": "1s"}))
	require.NoError(t, err)
	require.True(t, inst.(*instance).request.Entrypoint)
}

// Another compression has BuildKit's defaults.
func TestDefaultsOfOthers(t *testing.T) {
	d, err := ParseDefaults(map[string]string{"compression-level": "1"})
	require.NoError(t, err)
	inst, err := Wrap("image", newStock(t), nil, nil, d).Resolve(t.Context(), 7, attrs{"compression": "gzip"})
	require.NoError(t, err)
	require.Nil(t, inst.Config().Compression().Level)
}
