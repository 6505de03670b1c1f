package worker

import (
	"maps"
	"slices"
	"sync"

	"github.com/moby/buildkit/session"
)

// overlaps knows which calls for the layers of a reference went on at the same
// time.
//
// BuildKit does the work that several calls want once, with the session of the call
// that came first. When the client of that session goes away in the middle, all of
// them fail. Those whose clients are still there have to call again.
//
// The zero value is ready to use. It is safe for concurrent use.
type overlaps struct {
	mu    sync.Mutex
	calls map[*overlap]struct{}
}

// An overlap is a call. The others are the sessions whose work it may wait for and
// that have not been blamed yet: those of the calls that it has overlapped with, and
// those whose work these were waiting for when it began. A call that returns leaves
// its work to whoever waits for it, and the work keeps its session.
type overlap struct {
	all    *overlaps
	own    []string
	others map[string]struct{}
}

// begin registers a call. The caller ends it.
func (o *overlaps) begin(s session.Group) *overlap {
	c := &overlap{all: o, own: session.AllSessionIDs(s), others: map[string]struct{}{}}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.calls == nil {
		o.calls = map[*overlap]struct{}{}
	}
	for other := range o.calls {
		c.meets(other.own)
		c.meets(slices.Collect(maps.Keys(other.others)))
		other.meets(c.own)
	}
	o.calls[c] = struct{}{}
	return c
}

func (c *overlap) end() {
	c.all.mu.Lock()
	defer c.all.mu.Unlock()
	delete(c.all.calls, c)
}

// meets is called with the lock held.
func (c *overlap) meets(sessions []string) {
	for _, id := range sessions {
		if !slices.Contains(c.own, id) {
			c.others[id] = struct{}{}
		}
	}
}

// failed says whether to call again after an error: some of the other sessions have
// ended, and the error may be theirs. Each of them counts once.
func (c *overlap) failed(alive func(session string) bool) bool {
	c.all.mu.Lock()
	defer c.all.mu.Unlock()
	before := len(c.others)
	maps.DeleteFunc(c.others, func(id string, _ struct{}) bool { return !alive(id) })
	return len(c.others) < before
}
