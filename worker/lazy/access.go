package lazy

import (
	"context"
	"slices"
	"sync"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/blob"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// access knows which builds may use a layer that is not all here. It is safe for
// concurrent use.
//
// All builds that use a layer share its mount, so that what one of them reads may
// come with the credentials of another. Each has to show that it could have
// fetched the layer by itself. Which registry it reads from its image says, and
// that registry may answer anything, so that an answer counts in two cases only:
//
//   - It is the layer's TOC, whose digest is known and whose bytes no build gets
//     to see: whoever serves it has the layer. That repository is then a home of
//     the layer.
//   - It comes from a home, which has the layer and decides who may read it.
type access struct {
	alive func(session string) bool

	mu     sync.Mutex
	grants map[grant]struct{} // of sessions that lived when one was added last
	homes  map[string][]place // by the layer's ID
}

// A grant is a place that has answered a request with a session's credentials.
type grant struct {
	session string
	place
}

// A place is a repository of a registry.
type place struct{ registry, repository string }

func placeOf(s blob.Source) place { return place{s.Registry, s.Repository} }

func (a *access) grant(g grant) {
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

// granted says whether the place of a source has answered a build with it.
func (a *access) granted(s blob.Source) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.grants[grant{s.Reader, placeOf(s)}]
	return ok
}

// shown says whether any home of a layer has answered a build with these sources. It
// need not be one of them: BuildKit keeps the place by which another build had the layer.
func (a *access) shown(id string, sources []blob.Source) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.homes[id], func(home place) bool {
		return slices.ContainsFunc(sources, func(s blob.Source) bool {
			_, ok := a.grants[grant{s.Reader, home}]
			return ok
		})
	})
}

// maxHomes is how many homes of a layer are remembered. Those of one that is
// forgotten have to serve the TOC again.
const maxHomes = 64

// served is called when these sources have served the TOC of a layer. If they are
// several places, nobody knows which of them it was.
func (a *access) served(id string, sources []blob.Source) {
	if len(sources) == 0 || slices.ContainsFunc(sources, func(s blob.Source) bool { return placeOf(s) != placeOf(sources[0]) }) {
		return
	}
	home := placeOf(sources[0])
	a.mu.Lock()
	defer a.mu.Unlock()
	homes := a.homes[id]
	if slices.Contains(homes, home) {
		return
	}
	if len(homes) == maxHomes {
		homes = homes[1:]
	}
	a.homes[id] = append(slices.Clip(homes), home)
}

// restored is called when a layer is mounted for a snapshot that names a source.
// The build that prepared the snapshot had shown that it may read there, or all
// of the layer was here.
func (a *access) restored(id string, sources []blob.Source) {
	a.mu.Lock()
	known := len(a.homes[id]) > 0
	a.mu.Unlock()
	if !known {
		a.served(id, sources)
	}
}

func (a *access) forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.homes, id)
}

// split tells the sources that are homes of a layer from the others.
func (a *access) split(id string, sources []blob.Source) (homes, others []blob.Source) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range sources {
		if slices.Contains(a.homes[id], placeOf(s)) {
			homes = append(homes, s)
		} else {
			others = append(others, s)
		}
	}
	return homes, others
}

// withoutSuccessors returns sources that a build can show its rights with: answers
// come with the credentials of its own sessions only. Others that share a step with
// one that has ended show nothing for it.
func withoutSuccessors(sources []blob.Source) []blob.Source {
	sources = slices.Clone(sources)
	for i := range sources {
		sources[i].Successors = nil
	}
	return sources
}

// prove returns nil if a build with these sources may use a layer. They have no
// successors.
func (l *Layers) prove(ctx context.Context, key store.Key, sources []blob.Source) error {
	if l.access.shown(idOf(key), sources) {
		return nil
	}
	return l.proveAt(ctx, key, sources)
}

// proveAt is prove by an answer of one of the sources: none that another home of the layer
// has given counts.
func (l *Layers) proveAt(ctx context.Context, key store.Key, sources []blob.Source) error {
	homes, others := l.access.split(idOf(key), sources)
	if slices.ContainsFunc(homes, l.access.granted) {
		return nil
	}
	if len(homes) > 0 {
		err := l.line.Open(key.Blob, homes...).Probe(ctx)
		if err == nil || len(others) == 0 {
			return err
		}
	}
	return l.fetch(ctx, key, others)
}
