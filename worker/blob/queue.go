package blob

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// patience is how long a turn of low priority waits while others are
	// served. One that is served may depend on one that waits, so that nobody
	// must wait forever.
	patience = time.Second

	// While somebody of a higher priority is served, a connection that is
	// already there takes so many bytes in such a time: 160 kB/s at most. The server
	// should not take it for dead, and again nobody must wait forever.
	trickleBytes = 16 << 10
	trickleTime  = 100 * time.Millisecond

	// calm is for how long nobody of a higher priority must have been there
	// before others go on. Who reads one thing after another pauses for a few
	// milliseconds only, and what the others ask for then, up to what all the
	// buffers on the way hold, would come before the next thing.
	calm = 100 * time.Millisecond
)

// A queue hands out turns at connections, of which each registry has as many,
// half of them for nobody but who is waited for. Of those that wait, the blob goes
// first that has the fewest.
//
// What is in the background gets no turn, and pauses if it has one, while one of
// a higher priority at the same registry waits, runs or did so just now. Prefetch,
// which is needed anyway, leaves the line to what is wanted from its first byte to
// its last: in the round trip before, nobody else would use it. What is wanted of
// other registries does not count, since one that is slow would hold up all.
type queue struct {
	connections int

	mu      sync.Mutex
	running [priorities]int
	hosts   map[string]*load // of the registries that have turns running, or had just now
	blobs   map[*Blob]int    // turns that run
	waiting []*turn          // in the order in which they came
	changed chan struct{}    // closed when turns come or go; nil if nobody looks
}

// A load is the turns of a registry, by priority.
type load struct {
	running [priorities]int
	comes   [priorities]int       // of those, whose bytes arrive
	ended   [priorities]time.Time // when the last one did
}

// idle tells whether nothing depends on the load any more.
func (l *load) idle() bool {
	for _, at := range l.ended {
		if time.Since(at) < calm {
			return false
		}
	}
	return l.running == [priorities]int{}
}

// load returns that of a registry.
func (q *queue) load(host string) *load {
	l := q.hosts[host]
	if l == nil {
		maps.DeleteFunc(q.hosts, func(_ string, l *load) bool { return l.idle() })
		if q.hosts == nil {
			q.hosts = map[string]*load{}
		}
		l = &load{}
		q.hosts[host] = l
	}
	return l
}

// A turn is the right to one connection, which a stream takes and gives back,
// time and again.
type turn struct {
	queue *queue
	blob  *Blob
	host  string // the registry's; changes only while the turn neither runs nor waits

	// The queue's lock guards what follows.
	priority Priority
	running  bool
	comes    bool          // its bytes arrive
	ready    chan struct{} // closed when it runs; nil unless it waits
	since    time.Time     // when it began to wait
}

// take waits for the turn.
func (t *turn) take(ctx context.Context) error {
	ready := t.queue.enter(t)
	select {
	case <-ready: // mostly at once, without a timer
		return nil
	default:
	}
	again := time.NewTicker(calm / 4)
	defer again.Stop()
	for {
		select {
		case <-ready:
			return nil
		case <-again.C:
			t.queue.poll()
		case <-ctx.Done():
			t.release()
			return ctx.Err()
		}
	}
}

// release gives the turn back, or stops waiting for it.
func (t *turn) release() {
	q := t.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case t.running:
		host := q.load(t.host)
		if t.comes {
			host.comes[t.priority]--
		}
		t.running, t.comes = false, false
		q.count(t, -1)
		host.ended[t.priority] = time.Now()
	case t.ready != nil:
		q.waiting = slices.DeleteFunc(q.waiting, func(w *turn) bool { return w == t })
		t.ready = nil
	default:
		return
	}
	q.admit()
}

// arrives is called when the first byte has come.
func (t *turn) arrives() {
	q := t.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if t.running && !t.comes {
		t.comes = true
		q.load(t.host).comes[t.priority]++
		q.admit()
	}
}

// raise gives the turn a higher priority, wherever it is.
func (t *turn) raise(p Priority) { t.change(func(now Priority) Priority { return min(now, p) }) }

// lower gives it a lower one.
func (t *turn) lower(p Priority) { t.change(func(now Priority) Priority { return max(now, p) }) }

func (t *turn) change(to func(Priority) Priority) {
	q := t.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	p := to(t.priority)
	if p == t.priority {
		return
	}
	if t.comes {
		host := q.load(t.host)
		host.comes[t.priority]--
		host.comes[p]++
	}
	if t.running {
		q.count(t, -1)
	}
	t.priority = p
	if t.running {
		q.count(t, 1)
	}
	q.admit()
}

func (t *turn) level() Priority {
	t.queue.mu.Lock()
	defer t.queue.mu.Unlock()
	return t.priority
}

// yield waits while turns of a higher priority go first, and returns how many
// bytes may be read then, of n.
func (t *turn) yield(ctx context.Context, n int) (allowed int, waited bool) {
	var over <-chan time.Time
	for {
		changed := t.queue.above(t)
		if changed == nil {
			return n, waited
		}
		if waited = true; over == nil {
			timer := time.NewTimer(trickleTime)
			defer timer.Stop()
			over = timer.C
		}
		select {
		case <-changed:
		case <-over:
			return min(n, trickleBytes), waited
		case <-ctx.Done():
			return n, waited
		}
	}
}

func (q *queue) enter(t *turn) <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	ready := make(chan struct{})
	t.ready, t.since = ready, time.Now()
	q.waiting = append(q.waiting, t)
	q.admit()
	return ready
}

// poll lets those run whom nothing but time has held back.
func (q *queue) poll() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.admit()
}

// above returns nil unless turns of a higher priority go first, and else what
// is closed at the next change.
func (q *queue) above(t *turn) <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.busyAbove(t) {
		return nil
	}
	if q.changed == nil {
		q.changed = make(chan struct{})
	}
	return q.changed
}

// admit lets as many run as may, and tells those who look.
func (q *queue) admit() {
	for t := q.next(); t != nil; t = q.next() {
		q.waiting = slices.DeleteFunc(q.waiting, func(w *turn) bool { return w == t })
		q.count(t, 1)
		t.running = true
		close(t.ready)
		t.ready = nil
	}
	if q.changed != nil {
		close(q.changed)
		q.changed = nil
	}
}

// count notes that a turn begins or ends.
func (q *queue) count(t *turn, by int) {
	if q.blobs == nil {
		q.blobs = map[*Blob]int{}
	}
	q.load(t.host).running[t.priority] += by
	q.running[t.priority] += by
	q.blobs[t.blob] += by
	if q.blobs[t.blob] == 0 {
		delete(q.blobs, t.blob)
	}
}

// next is the first of the highest priority that may run, of the blob with the
// fewest that do.
func (q *queue) next() *turn {
	var best *turn
	for _, t := range q.waiting {
		if q.admissible(t) && (best == nil || t.priority < best.priority ||
			t.priority == best.priority && q.blobs[t.blob] < q.blobs[best.blob]) {
			best = t
		}
	}
	return best
}

func (q *queue) admissible(t *turn) bool {
	running := q.load(t.host).running
	low := running[Prefetch] + running[Background]
	switch {
	case running[Wanted]+low >= q.connections:
		return false
	case t.priority == Wanted:
		return true
	case low >= q.connections/2:
		return false
	case t.priority == Prefetch:
		return true
	}
	return time.Since(t.since) >= patience || !q.busyAbove(t)
}

// busyAbove tells whether the turn has to give way to others of its registry.
func (q *queue) busyAbove(t *turn) bool {
	host := q.load(t.host)
	if t.priority == Prefetch {
		return host.comes[Wanted] > 0
	}
	for higher := range t.priority {
		if host.running[higher] > 0 || time.Since(host.ended[higher]) < calm {
			return true
		}
	}
	return slices.ContainsFunc(q.waiting, func(w *turn) bool { return w.host == t.host && w.priority < t.priority })
}

func (q *queue) counts() (running, waiting [priorities]int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, t := range q.waiting {
		waiting[t.priority]++
	}
	return q.running, waiting
}
