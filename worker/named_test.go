package worker

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
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

// An askedProvider is called for blobs that it does not have.
type askedProvider func()

func (p askedProvider) ReaderAt(context.Context, ocispecs.Descriptor) (content.ReaderAt, error) {
	p()
	return nil, errors.New("nothing here")
}

func TestNamedImages(t *testing.T) {
	n, layer := &namedImages{}, digest.FromString("layer")
	asked, handlers := "", map[string]*cache.DescHandler{}
	add := func(s *fakeSource, ref string) {
		handlers[ref] = &cache.DescHandler{Ref: ref, Provider: func(g session.Group) content.Provider {
			return askedProvider(func() { asked += " " + ref + ":" + strings.Join(session.AllSessionIDs(g), ",") })
		}}
		require.NoError(t, n.add(s, solver.CacheOpts{cache.DescHandlerKey(layer): handlers[ref], "other": 1}))
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

	// Who pulls with the handlers of a result does so from there, too.
	asked = ""
	_, err := handlers["registry/base"].Provider(session.NewGroup("b")).ReaderAt(t.Context(), ocispecs.Descriptor{Digest: layer})
	require.ErrorContains(t, err, "nothing here")
	require.Equal(t, " mirror/base:b", asked)
	asked = ""
	_, err = handlers["registry/base"].Provider(session.NewGroup("b", "a")).ReaderAt(t.Context(), ocispecs.Descriptor{Digest: layer})
	require.Error(t, err)
	require.Equal(t, " mirror/base:b registry/base:a", asked)
	asked = ""
	_, err = handlers["mirror/base"].Provider(session.NewGroup("d")).ReaderAt(t.Context(), ocispecs.Descriptor{Digest: layer})
	require.Error(t, err)
	require.Equal(t, " mirror/base:d", asked)

	require.NoError(t, second.released())
	require.Equal(t, []string{"registry/base"}, n.refs("b", layer))
	require.NoError(t, first.released())
	require.Empty(t, n.images)
}
