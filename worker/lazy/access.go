package lazy

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/blob"
)

// access remembers which builds have shown that they may read a repository: it
// has answered a request with their own credentials. It is safe for concurrent
// use.
//
// All builds that use a layer share its mount, so that what one of them reads
// may come with the credentials of another. None gets to use a layer that is not
// all here before it could have fetched it by itself.
type access struct {
	alive func(session string) bool

	mu     sync.Mutex
	grants map[grant]struct{} // of sessions that lived when one was added last
}

// A grant is what a registry has allowed a session.
type grant struct{ session, registry, repository string }

func (a *access) add(g grant) {
	if g.session == "" {
		return // what everybody may read today is asked for again
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.grants[g]; ok {
		return
	}
	for g := range a.grants {
		if !a.alive(g.session) {
			delete(a.grants, g)
		}
	}
	a.grants[g] = struct{}{}
}

func (a *access) has(s blob.Source) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.grants[grant{s.Reader, s.Registry, s.Repository}]
	return ok
}

// prove asks for a little of a blob, unless one of the sources has given
// something to its reader before.
func (l *Layers) prove(ctx context.Context, d digest.Digest, sources []blob.Source) error {
	for _, s := range sources {
		if l.access.has(s) {
			return nil
		}
	}
	return l.line.Open(d, sources...).Probe(ctx)
}
