package worker

import (
	"testing"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/solver"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// A result lies upon layers of which a build knows some, and others are mounted.
func TestHandlersOfAll(t *testing.T) {
	needs := []digest.Digest{"sha256:a", "sha256:b", "sha256:c"}
	get := func(handlers cache.DescHandlers) (cache.ImmutableRef, error) {
		var missing cache.NeedsRemoteProviderError
		for _, blob := range needs {
			if handlers[blob] == nil {
				missing = append(missing, blob)
			}
		}
		if len(missing) > 0 {
			return nil, missing[:1] // one after the other
		}
		return nil, nil
	}
	build := &cache.DescHandler{}
	ctx := solver.WithCacheOptGetter(t.Context(), func(_ bool, keys ...any) map[any]any {
		found := map[any]any{}
		for _, key := range keys {
			if key == cache.DescHandlerKey("sha256:a") {
				found[key] = build
			}
		}
		return found
	})
	require.Same(t, build, ofBuild(ctx, "sha256:a"))
	require.Nil(t, ofBuild(ctx, "sha256:b"))
	require.Nil(t, ofBuild(t.Context(), "sha256:a"))

	known := map[digest.Digest]*cache.DescHandler{}
	of := func(blob digest.Digest) *cache.DescHandler {
		if h := ofBuild(ctx, blob); h != nil {
			return h
		}
		return known[blob]
	}
	known["sha256:b"] = &cache.DescHandler{}
	_, err := withHandlers(get, of)
	require.ErrorAs(t, err, new(cache.NeedsRemoteProviderError))
	known["sha256:c"] = &cache.DescHandler{}
	_, err = withHandlers(get, of)
	require.NoError(t, err)
}
