package lazy

import (
	"maps"
	"slices"
	"sync"

	"github.com/moby/buildkit/session"
	"github.com/opencontainers/go-digest"
)

// An operation is done once for all builds that want it.
type operation struct {
	uses     func(blob digest.Digest) bool
	sessions session.Group // changes as builds join the operation and end

	mu   sync.Mutex
	seen map[string]bool // sessions that are or were among them
}

// Share says, until end is called, that an operation of some sessions uses some blobs.
// When one of the sessions has ended, what it has read from its registry is read with
// the credentials of those that are left, which may have joined the operation later.
func (l *Layers) Share(uses func(blob digest.Digest) bool, sessions session.Group) (end func()) {
	o := &operation{uses: uses, sessions: sessions, seen: map[string]bool{}}
	o.see()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.operations[o] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.operations, o)
	}
}

// successors returns the living sessions that share an operation with one that has
// ended, if the operation uses the blob.
func (l *Layers) successors(ended string, blob digest.Digest) []string {
	l.mu.Lock()
	operations := slices.Collect(maps.Keys(l.operations))
	l.mu.Unlock()
	var living []string
	for _, o := range operations {
		if o.saw(ended) && o.uses(blob) {
			living = append(living, slices.DeleteFunc(o.see(), func(s string) bool { return !l.opts.Alive(s) })...)
		}
	}
	return living
}

// see returns the sessions of this moment.
func (o *operation) see() []string {
	now := session.AllSessionIDs(o.sessions)
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range now {
		o.seen[s] = true
	}
	return now
}

func (o *operation) saw(session string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seen[session]
}
