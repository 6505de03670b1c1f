package store

import (
	"context"
	"errors"
	"sync"
	"time"
)

// priority says who needs chunks, the most urgent first.
type priority int

const (
	wanted priority = iota
	prefetched
	background
)

func (b *Blobs) at(p priority) Blob {
	return [...]Blob{b.Wanted, b.Prefetch, b.Background}[p]
}

// An errand is why chunks are fetched, and how many at a time.
type errand struct {
	priority priority
	until    uint32 // chunks before this one
}

// A run is a range of the blob with chunks to be fetched by one request. It
// begins when its first chunk is to be had, and may come to nothing.
type run struct {
	layer *Layer
	errand
	items  []item
	shares bool // leaves out chunks that other layers are getting

	waiting context.Context // done when somebody waits
	hurry   context.CancelFunc
	ended   chan struct{} // closed at the end
}

// An item is a chunk of a run. They are in the order of the blob.
type item struct {
	chunk  uint32
	flight *flight
}

const (
	// maxItems bounds the flights of a run.
	maxItems = 1 << 14

	// maxAttempts is how often a chunk is fetched that arrives corrupt.
	maxAttempts = 3
)

func (l *Layer) newRun(e errand) *run {
	r := &run{layer: l, errand: e, ended: make(chan struct{})}
	r.waiting, r.hurry = context.WithCancel(context.Background())
	return r
}

// obtain waits until a chunk is here, for somebody who reads it.
func (l *Layer) obtain(ctx context.Context, c uint32) error {
	if err := l.corruption.of(c); err != nil {
		return err
	}
	e := errand{priority: wanted, until: l.index.Chunks}
	err := l.await(ctx, c, l.begin(ctx, c, e))
	if errors.Is(err, errCorrupt) {
		l.corruption.add(c, err)
	}
	return err
}

// corruptionLasts is how long a chunk that came corrupt several times is not
// fetched again for those who read it.
const corruptionLasts = 10 * time.Second

// A corruption remembers the chunks that came corrupt. The zero value is none.
type corruption struct {
	mu     sync.Mutex
	chunks map[uint32]corrupted
}

type corrupted struct {
	err   error
	until time.Time
}

func (s *corruption) add(c uint32, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chunks == nil {
		s.chunks = map[uint32]corrupted{}
	}
	s.chunks[c] = corrupted{err, time.Now().Add(corruptionLasts)}
}

// of returns the error of a chunk that came corrupt a short time ago.
func (s *corruption) of(c uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.chunks[c]
	if !ok || time.Now().Before(known.until) {
		return known.err
	}
	delete(s.chunks, c)
	return nil
}

// forget is called when the contents may come from elsewhere.
func (s *corruption) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chunks = nil
}

// A trip is an attempt to get a chunk.
type trip struct {
	*run
	flight *flight
	mine   bool // the run gets it; else somebody does already
}

// begin begins to get a chunk, unless somebody does already. If it has to be
// fetched, the missing ones behind it come along.
func (l *Layer) begin(ctx context.Context, c uint32, e errand) trip {
	r := l.newRun(e)
	digest := l.index.chunk(c).Digest
	if e.priority != wanted {
		_, others := l.store.flights.has(l, digest)
		r.shares = !others
	}
	f, mine := l.store.flights.board(digest, r)
	if mine {
		r.begin(ctx, c, f)
	} else if e.priority == wanted {
		f.run.hurry()
		l.cursor.Store(c + 1)
	}
	return trip{r, f, mine}
}

// await waits for the chunk of a trip, and tries again as often as is sensible.
// Who is in no hurry waits for all of the run.
func (l *Layer) await(ctx context.Context, c uint32, t trip) error {
	for tries := 1; ; t = l.begin(ctx, c, t.errand) {
		if t.mine && t.priority != wanted {
			<-t.ended // which is soon if the context is done
		}
		select {
		case <-t.flight.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		err := t.flight.err
		if err == nil && l.present.has(c) {
			return nil
		}
		if err == nil || err == errAgain {
			continue // without an error, another chunk of the layer has the same contents
		}
		corrupt := errors.Is(err, errCorrupt)
		if corrupt {
			tries++
		}
		if tries > maxAttempts || !corrupt && (t.mine || t.flight.counts(t.errand)) {
			return err
		}
	}
}

// counts says whether the end of somebody else's flight is that of the errand
// too: not if that one gave up, or tried less hard.
func (f *flight) counts(e errand) bool {
	return !errors.Is(f.err, context.Canceled) && f.run.priority <= e.priority
}

// begin gets the run's first chunk, whose flight is f, and those behind it if
// it has to be fetched.
func (r *run) begin(ctx context.Context, c uint32, f *flight) {
	l := r.layer
	if r.priority == wanted {
		// What is asked for is fetched even if the reader goes: there may be
		// others, and the bytes are on their way.
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	err := l.enter(r, cancel)
	if err != nil {
		cancel()
		close(r.ended)
		l.land(c, f, err)
		return
	}
	blobs, err := l.missing(c)
	if blobs == nil {
		l.leave(r)
		l.land(c, f, err)
		return
	}
	r.plan(c, f, blobs.at(r.priority).Window())
	go func() {
		defer l.leave(r)
		r.fetch(ctx, blobs)
	}()
}

func (l *Layer) land(c uint32, f *flight, err error) {
	l.store.flights.land(l.index.chunk(c).Digest, f, err)
}

// missing returns where to fetch a chunk from, nil if it is here or cannot be.
func (l *Layer) missing(c uint32) (*Blobs, error) {
	if l.present.has(c) {
		return nil, nil
	}
	if ok, err := l.local(c); ok {
		return nil, nil
	} else if err != nil {
		return nil, l.errorf("%w", err)
	}
	blobs := l.blobs.Load()
	if blobs == nil {
		return nil, l.errorf("its contents are not all here, and no registry is known to have them")
	}
	if err := l.store.checkSpace(int64(l.index.chunk(c).Size)); err != nil {
		return nil, l.errorf("%w", err)
	}
	return blobs, nil
}

// plan adds the chunk to the run and missing ones of the same member and of
// those behind it, up to window bytes. What is here already it skips, but for
// little: an eighth of the bytes that are needed costs less than another
// request.
func (r *run) plan(c uint32, f *flight, window int64) {
	l := r.layer
	k := l.index.chunk(c)
	limit, end := k.Offset+window, k.Offset
	until := max(r.until, c+1)
	if l.prefetching.Load() {
		// The neighbours of a file that is not known to be needed can wait.
		until = max(min(r.until, l.index.Prefetch), c+1)
	}
	first := c
	for first > 0 && c-first < maxItems/2 && l.index.chunk(first-1).Offset == k.Offset {
		first--
	}
	needed, skipped := int64(0), int64(0)
	for n := first; n < until && len(r.items) < maxItems; n++ {
		k := l.index.chunk(n)
		gap := max(k.Offset-end, 0)
		if n > c && (k.end() > limit || skipped+gap > needed/8) {
			break
		}
		i := item{n, f}
		if n != c {
			i.flight = r.boardMissing(n)
		}
		if i.flight != nil {
			r.items = append(r.items, i)
			skipped += gap
			needed += k.end() - max(end, k.Offset)
			end = k.end()
		}
	}
	if r.priority == wanted {
		l.cursor.Store(r.items[len(r.items)-1].chunk + 1)
	}
}

// boardMissing begins the flight of a chunk that is not here nor on its way.
func (r *run) boardMissing(c uint32) *flight {
	l := r.layer
	if l.present.has(c) || l.present.claimed(c) {
		return nil
	}
	if _, ok := l.twinOf(c); ok {
		return nil
	}
	digest := l.index.chunk(c).Digest
	if _, others := l.store.flights.has(l, digest); others && r.shares {
		return nil
	}
	f, mine := l.store.flights.board(digest, r)
	if !mine {
		return nil
	}
	if l.present.has(c) { // since just now
		l.land(c, f, nil)
		return nil
	}
	return f
}
