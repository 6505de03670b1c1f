package store

import "sync"

// flights are the chunks that somebody is getting, by their digest: whoever
// needs one of them waits, in whatever layer it is.
type flights struct {
	mu sync.Mutex
	by map[[32]byte]*flight
}

// A flight is one chunk on its way.
type flight struct {
	run  *run
	done chan struct{} // closed when it has ended
	err  error         // of a flight that has ended
}

// board joins the flight of a digest, or begins one as a part of the run.
func (s *flights) board(digest [32]byte, r *run) (f *flight, mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.by[digest]; f != nil {
		return f, false
	}
	f = &flight{run: r, done: make(chan struct{})}
	s.by[digest] = f
	return f, true
}

// has says whether somebody is getting a digest.
func (s *flights) has(digest [32]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by[digest] != nil
}

// land ends a flight.
func (s *flights) land(digest [32]byte, f *flight, err error) {
	s.mu.Lock()
	delete(s.by, digest)
	s.mu.Unlock()
	f.err = err
	close(f.done)
}
