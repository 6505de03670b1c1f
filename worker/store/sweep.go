package store

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Prefetch waits until the files that are known to be needed soon are here:
// those before the landmark. It asks for a window at a time: they are not in the
// order in which they are needed, and who needs one of the last would otherwise
// wait for all.
func (l *Layer) Prefetch(ctx context.Context) error {
	l.prefetching.Store(true)
	defer l.prefetching.Store(false)
	s := &sweep{layer: l, errand: errand{priority: prefetched, until: l.index.Prefetch}}
	return s.run(ctx, prefetchers)
}

// Fill waits until all files are here, fetched as long as nobody minds, and when
// Options.Pace lets it.
func (l *Layer) Fill(ctx context.Context) error {
	s := &sweep{layer: l, errand: errand{priority: background, until: l.index.Chunks}}
	return s.run(ctx, fillers)
}

// prefetchers and fillers are how many ranges of a layer are asked for at a
// time, so that asking for one takes no time from another. Those of fillers may
// be small, where a layer lacks single files.
const (
	prefetchers = 3
	fillers     = 2
)

// A sweep gets all chunks of a part of the layer. It goes on near what was
// wanted last, where the next that is needed often is.
type sweep struct {
	layer *Layer
	errand

	mu       sync.Mutex
	at       uint32           // the chunk to go on with
	followed uint32           // the layer's cursor, when it was looked at last
	taken    map[uint32]bool  // chunks, by a worker
	corrupt  map[uint32]error // chunks that cannot be had
}

// run gets the chunks by that many workers. It goes on past those that are not
// what they should be, and ends with the reason if it can get no others.
func (s *sweep) run(ctx context.Context, workers int) error {
	s.taken, s.corrupt = map[uint32]bool{}, map[uint32]error{}
	eg, ctx := errgroup.WithContext(ctx)
	for range workers {
		eg.Go(func() error { return s.work(ctx) })
	}
	if err := eg.Wait(); err != nil {
		return err
	}
	for _, err := range s.corrupt {
		return err // one tells it all
	}
	return nil
}

func (s *sweep) work(ctx context.Context) error {
	for s.left() {
		e, err := s.turn(ctx)
		if err != nil {
			return err
		}
		c, t, ok := s.begin(ctx, e)
		if !ok {
			return nil
		}
		err = s.layer.await(ctx, c, t)
		if err != nil && !errors.Is(err, errCorrupt) {
			return err
		}
		s.mu.Lock()
		delete(s.taken, c)
		if err != nil {
			s.corrupt[c] = err
		}
		s.mu.Unlock()
	}
	return nil
}

// turn waits until it is time for the next chunk, and says how urgent it is.
// While somebody waits for one file after the other, what is near the last one
// is likely to be next, and what is not would hold it up on the line.
func (s *sweep) turn(ctx context.Context) (errand, error) {
	e := s.errand
	for e.priority == background {
		soon, err := s.layer.store.pace(ctx)
		if err != nil {
			return e, err
		}
		if !soon {
			break
		}
		if s.near() {
			e.priority = prefetched
			break
		}
		select {
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return e, context.Cause(ctx)
		}
	}
	return e, s.layer.store.spare()
}

// nearBy is how many bytes of the blob are near. A cold import of pandas at 80 ms
// and 100 Mbit/s fetches 74 MB with it and 86 without, and takes half a second
// less of ten; 5 and 14 MiB do much the same.
const nearBy = 8 << 20

// lookAgain is how often it is looked at whether something else was wanted.
const lookAgain = 25 * time.Millisecond

// near says whether the next chunk is near what was wanted last.
func (s *sweep) near() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.follow()
	c, _, ok := s.next()
	if !ok {
		return true // there is none
	}
	x := s.layer.index
	wanted := min(s.layer.cursor.Load(), x.Chunks-1)
	distance := x.chunk(c).Offset - x.chunk(wanted).Offset
	return -nearBy <= distance && distance <= nearBy
}

// left says whether anything is missing.
func (s *sweep) left() bool { return !s.layer.allHere(0, s.until) }

// begin begins with the next chunk. When it returns, other workers know what
// comes along.
func (s *sweep) begin(ctx context.Context, e errand) (c uint32, t trip, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.follow()
	c, fresh, ok := s.next()
	if fresh {
		s.at = c + 1
	}
	if ok {
		s.taken[c] = true
		t = s.layer.begin(ctx, c, e)
	}
	return c, t, ok
}

// follow goes to where something was wanted. What a prefetch lacks is behind it
// at most; what the background lacks may be before it as well.
func (s *sweep) follow() {
	at := s.layer.cursor.Load()
	if at == s.followed || at >= s.until {
		return
	}
	s.at, s.followed = at, at
	blobs := s.layer.blobs.Load()
	if s.priority != background || blobs == nil {
		return
	}
	from := s.layer.index.chunk(at).Offset - blobs.Background.Window()
	for s.at > 0 && s.layer.index.chunk(s.at-1).Offset >= from {
		s.at--
	}
}

// next returns the next chunk, a fresh one that nobody is getting yet. When all
// that are missing are on their way it is one to wait for, if no other worker
// does, or else one that only other layers are getting: for those nobody waits.
func (s *sweep) next() (c uint32, fresh, ok bool) {
	var elsewhere *uint32
	for i := range s.until {
		next := (s.at + i) % s.until
		if s.layer.present.has(next) || s.taken[next] || s.corrupt[next] != nil {
			continue
		}
		own, others := s.layer.store.flights.has(s.layer, s.layer.index.chunk(next).Digest)
		switch {
		case !own && !others:
			return next, true, true
		case own && !ok:
			c, ok = next, true
		case !own && elsewhere == nil:
			elsewhere = &next
		}
	}
	if !ok && elsewhere != nil {
		c, ok = *elsewhere, true
	}
	return c, false, ok
}
