package store

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// Prefetch waits until the files that are known to be needed soon are here:
// those before the landmark. It asks for them in one range.
func (l *Layer) Prefetch(ctx context.Context) error {
	s := &sweep{layer: l, errand: errand{priority: prefetched, until: l.index.Prefetch, whole: true}}
	return s.run(ctx, 1)
}

// Fill waits until all files are here, fetched as long as nobody minds. It goes
// on behind what was read last.
func (l *Layer) Fill(ctx context.Context) error {
	s := &sweep{layer: l, errand: errand{priority: background, until: l.index.Chunks}, follow: &l.cursor}
	return s.run(ctx, fillers)
}

// fillers is how many ranges of a layer are filled at a time, so that asking
// for one takes no time from another. They may be small, where a layer lacks
// single files.
const fillers = 4

// A sweep gets all chunks of a part of the layer.
type sweep struct {
	layer *Layer
	errand
	follow *atomic.Uint32 // the chunk to go on with, whenever it changes

	mu       sync.Mutex
	at       uint32           // the chunk to go on with
	followed uint32           // what follow was
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
	for {
		c, t, ok := s.begin(ctx)
		if !ok {
			return nil
		}
		err := s.layer.await(ctx, c, t)
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
}

// begin begins with the next chunk. When it returns, other workers know what
// comes along.
func (s *sweep) begin(ctx context.Context) (c uint32, t trip, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok = s.next(); ok {
		s.taken[c] = true
		t = s.layer.begin(ctx, c, s.errand)
	}
	return c, t, ok
}

// next returns the next chunk that nobody is getting yet. When all that are
// missing are on their way it is one to wait for, if no other worker does.
func (s *sweep) next() (c uint32, ok bool) {
	if s.follow != nil {
		if at := s.follow.Load(); at != s.followed {
			s.at, s.followed = at, at
		}
	}
	for i := range s.until {
		next := (s.at + i) % s.until
		if s.layer.present.has(next) || s.taken[next] || s.corrupt[next] != nil {
			continue
		}
		if !ok {
			c, ok = next, true
		}
		if !s.layer.store.flights.has(s.layer.index.chunk(next).Digest) {
			c, s.at = next, next+1
			break
		}
	}
	return c, ok
}
