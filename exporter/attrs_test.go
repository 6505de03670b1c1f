package exporter

import (
	"context"
	"maps"
	"strings"
	"testing"

	"github.com/moby/buildkit/cache/remotecache"
	bkexporter "github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage"
	"github.com/moby/buildkit/session"
	bkcompression "github.com/moby/buildkit/util/compression"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression"
)

type attrs map[string]string

// with adds to what every export with eStargz has.
func with(more attrs) attrs {
	a := attrs{"compression": "estargz"}
	maps.Copy(a, more)
	return a
}

// TestRefused are errors before the build starts. Each names the attribute, its
// value and what would be right.
func TestRefused(t *testing.T) {
	all := []string{"image", "oci", "docker", "cache registry", "cache local"}
	images := all[:3]
	for _, tc := range []struct {
		name  string
		attrs attrs
		at    []string
		want  []string
	}{
		{"unknown", with(attrs{"estargz-chonk-size": "1"}), all, []string{"estargz-chonk-size=1", "estargz-chunk-size, estargz-convert, estargz-min-chunk-size", "estargz-profile-cmd"}},
		{"bad profile", with(attrs{"estargz-profile": "everything"}), images, []string{"estargz-profile=everything", "entrypoint, run, stage"}},
		{"bad reorder", with(attrs{"estargz-reorder": "some"}), images, []string{"estargz-reorder=some", "new"}},
		{"reordered cache", with(attrs{"estargz-reorder": "all"}), all[3:], []string{"estargz-reorder=all", "give it to -o"}},
		{"profiled cache", with(attrs{"estargz-profile": "run"}), all[3:], []string{"estargz-profile=run", "give it to -o"}},
		{"profiled gzip cache", attrs{"estargz-profile-cmd": "a"}, all[3:], []string{"estargz-profile-cmd=a", "give it to -o"}},
		{"no size", with(attrs{"estargz-chunk-size": "many"}), all, []string{"estargz-chunk-size=many", "64KiB to 64MiB"}},
		{"empty size", with(attrs{"estargz-chunk-size": ""}), all, []string{"estargz-chunk-size=", "4MiB"}},
		{"negative", with(attrs{"estargz-chunk-size": "-1"}), all, []string{"estargz-chunk-size=-1"}},
		{"infinite", with(attrs{"estargz-chunk-size": "inf"}), all, []string{"estargz-chunk-size=inf"}},
		{"huge", with(attrs{"estargz-chunk-size": "99999999999999999999"}), all, []string{"estargz-chunk-size="}},
		{"small", with(attrs{"estargz-chunk-size": "65535"}), all, []string{"estargz-chunk-size=65535"}},
		{"large", with(attrs{"estargz-chunk-size": "65MiB"}), all, []string{"estargz-chunk-size=65MiB"}},
		{"large min", with(attrs{"estargz-min-chunk-size": "1GiB"}), all, []string{"estargz-min-chunk-size=1GiB", "0B to 64MiB"}},
		{"level", with(attrs{"compression-level": "10"}), all, []string{"compression-level=10", "0 (none)"}},
		{"no level", with(attrs{"compression-level": "best"}), all, []string{"compression-level=best", "0 (none)"}},
		{"docker types", with(attrs{"oci-mediatypes": "false"}), images, []string{"oci-mediatypes=false", "compression"}},
		{"no bool", with(attrs{"oci-mediatypes": "perhaps"}), images, []string{"oci-mediatypes"}},
		{"rewrite", with(attrs{"rewrite-timestamp": "perhaps"}), images, []string{"rewrite-timestamp=perhaps", "true or false"}},
		{"epoch", with(attrs{"source-date-epoch": "perhaps"}), images, []string{"source-date-epoch"}},
		{"force", with(attrs{"force-compression": "perhaps"}), all, []string{"force-compression"}},
		{"gzip", attrs{"compression": "gzip", "estargz-chunk-size": "1MiB"}, all, []string{"estargz-chunk-size=1MiB", "needs compression=estargz"}},
		{"no compression", attrs{"estargz-chunk-size": "1MiB"}, all, []string{"estargz-chunk-size=1MiB", "needs compression=estargz"}},
		{"unknown compression", attrs{"compression": "eStargz"}, all, []string{"eStargz"}},
		{"files", attrs{"estargz-chunk-size": "1MiB"}, []string{"local", "tar"}, []string{"estargz-chunk-size=1MiB", "no layers"}},
		{"other caches", with(attrs{"estargz-chunk-size": "1MiB"}), []string{"cache inline", "cache gha", "cache s3"}, []string{"estargz-chunk-size=1MiB", "no compression of its own"}},
	} {
		for _, at := range tc.at {
			t.Run(tc.name+"/"+at, func(t *testing.T) {
				before := maps.Clone(tc.attrs)
				err := resolve(t, at, tc.attrs)
				require.Equal(t, before, tc.attrs, "not ours to change")
				for _, want := range tc.want {
					require.ErrorContains(t, err, want)
				}
			})
		}
	}
}

// TestUntouched is what never meets our type.
func TestUntouched(t *testing.T) {
	for _, a := range []attrs{
		nil,
		{"compression": "gzip", "force-compression": "true", "compression-level": "12"},
		{"compression": "zstd", "oci-mediatypes": "false", "rewrite-timestamp": "true"},
		{"compression": "uncompressed"},
	} {
		inst, err := Wrap("image", newStock(t), nil, nil, noDefaults(t)).Resolve(t.Context(), 7, a)
		require.NoError(t, err)
		require.IsNotType(t, &instance{}, inst)

		exp, err := WrapCache("registry", stockCache, nil, noDefaults(t))(t.Context(), nil, a)
		require.NoError(t, err)
		require.IsType(t, stockCacheExporter{}, exp)
	}
	exp, err := WrapCache("gha", stockCache, nil, noDefaults(t))(t.Context(), nil, attrs{"compression": "estargz"})
	require.NoError(t, err)
	require.IsType(t, stockCacheExporter{}, exp)

	// BuildKit means by nil that nothing is exported.
	none := func(context.Context, session.Group, map[string]string) (remotecache.Exporter, error) { return nil, nil }
	exp, err = WrapCache("registry", none, nil, noDefaults(t))(t.Context(), nil, attrs{"compression": "estargz"})
	require.NoError(t, err)
	require.Nil(t, exp)
}

func TestConfig(t *testing.T) {
	three := 3
	for _, tc := range []struct {
		attrs attrs
		want  bkcompression.Config
	}{
		{with(nil), bkcompression.Config{Type: compression.New(nil, compression.Options{})}},
		{with(attrs{"compression-level": "3", "force-compression": "true"}),
			bkcompression.Config{Type: compression.New(nil, compression.Options{}), Force: true, Level: &three}},
		{with(attrs{"force-compression": ""}), bkcompression.Config{Type: compression.New(nil, compression.Options{}), Force: true}},
		{with(attrs{"estargz-chunk-size": "65536", "estargz-min-chunk-size": "64k"}),
			bkcompression.Config{Type: compression.New(nil, compression.Options{ChunkSize: 64 << 10, MinChunkSize: 64 << 10})}},
		{with(attrs{"estargz-chunk-size": "64MiB", "estargz-min-chunk-size": "0"}),
			bkcompression.Config{Type: compression.New(nil, compression.Options{ChunkSize: 64 << 20})}},
	} {
		inst, err := Wrap("image", newStock(t), nil, nil, noDefaults(t)).Resolve(t.Context(), 7, tc.attrs)
		require.NoError(t, err)
		require.Equal(t, 7, inst.ID())
		require.Equal(t, "image", inst.Type())
		require.Equal(t, map[string]string(tc.attrs), inst.Attrs())
		require.Equal(t, tc.want, inst.Config().Compression())

		exp, err := WrapCache("local", stockCache, nil, noDefaults(t))(t.Context(), nil, tc.attrs)
		require.NoError(t, err)
		require.Equal(t, tc.want, exp.Config().Compression)
	}
}

// resolve does what the daemon does with the attributes of "-o type=at", or of
// "--cache-to type=at".
func resolve(t *testing.T, at string, a attrs) error {
	t.Helper()
	if name, ok := strings.CutPrefix(at, "cache "); ok {
		_, err := WrapCache(name, stockCache, nil, noDefaults(t))(t.Context(), nil, a)
		return err
	}
	_, err := Wrap(at, newStock(t), nil, nil, noDefaults(t)).Resolve(t.Context(), 0, a)
	return err
}

func newStock(t *testing.T) bkexporter.Exporter {
	t.Helper()
	e, err := containerimage.New(containerimage.Opt{})
	require.NoError(t, err)
	return e
}

// stockCache parses attributes as BuildKit's cache exporters do.
func stockCache(_ context.Context, _ session.Group, attrs map[string]string) (remotecache.Exporter, error) {
	c, err := bkcompression.ParseAttributes(attrs)
	return stockCacheExporter{config: c}, err
}

type stockCacheExporter struct {
	remotecache.Exporter
	config bkcompression.Config
}

func (e stockCacheExporter) Config() remotecache.Config {
	return remotecache.Config{Compression: e.config}
}
