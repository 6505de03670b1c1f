package worker

import (
	"testing"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// A fakeSource is what BuildKit knows of one while it resolves it. Builds may join it later.
type fakeSource struct {
	solver.JobContext
	sessions []string
	released func() error
}

func (s *fakeSource) SessionIterator() session.Iterator {
	return session.NewGroup(s.sessions...).SessionIterator()
}
func (s *fakeSource) Session() session.Group { return s }
func (s *fakeSource) Cleanup(release func() error) error {
	s.released = release
	return nil
}

func TestNamedImages(t *testing.T) {
	n, layer := &namedImages{}, digest.FromString("layer")
	add := func(s *fakeSource, ref string) {
		require.NoError(t, n.add(s, solver.CacheOpts{cache.DescHandlerKey(layer): &cache.DescHandler{Ref: ref}, "other": 1}))
	}
	first, second := &fakeSource{sessions: []string{"a"}}, &fakeSource{sessions: []string{"b"}}
	add(first, "registry/base")
	add(second, "mirror/base")
	second.sessions = append(second.sessions, "c")
	first.sessions = append(first.sessions, "b", "c") // the solver has merged the sources

	require.Equal(t, []string{"registry/base"}, n.refs("a", layer))
	require.Equal(t, []string{"mirror/base"}, n.refs("b", layer), "it has named no other")
	require.Equal(t, []string{"mirror/base", "registry/base"}, n.refs("c", layer), "it is not known which one")
	require.Empty(t, n.refs("d", layer))
	require.Empty(t, n.refs("b", digest.FromString("another")))

	require.NoError(t, second.released())
	require.Equal(t, []string{"registry/base"}, n.refs("b", layer))
	require.NoError(t, first.released())
	require.Empty(t, n.images)
}
