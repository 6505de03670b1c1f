package store

import "sync"

// flights are the chunks that are on their way, those of each layer by their
// digest: whoever needs one waits for the flight of the same layer. Nobody waits
// for that of another layer, whose registry may be slower, or refuse.
type flights struct {
	mu   sync.Mutex
	by   map[flightKey]*flight
	many map[[32]byte]int // how many layers are getting a digest
}

type flightKey struct {
	layer  *Layer
	digest [32]byte
}

// A flight is one chunk on its way.
type flight struct {
	run  *run
	done chan struct{} // closed when it has ended
	err  error         // of a flight that has ended
}

func newFlights() flights {
	return flights{by: map[flightKey]*flight{}, many: map[[32]byte]int{}}
}

// board joins the layer's flight of a digest, or begins one as a part of the run.
func (s *flights) board(digest [32]byte, r *run) (f *flight, mine bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := flightKey{r.layer, digest}
	if f := s.by[key]; f != nil {
		return f, false
	}
	f = &flight{run: r, done: make(chan struct{})}
	s.by[key] = f
	s.many[digest]++
	return f, true
}

// has says whether a layer is getting a digest, and whether others are.
func (s *flights) has(l *Layer, digest [32]byte) (own, others bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	many := s.many[digest]
	if own = s.by[flightKey{l, digest}] != nil; own {
		many--
	}
	return own, many > 0
}

// land ends a flight.
func (s *flights) land(digest [32]byte, f *flight, err error) {
	s.mu.Lock()
	delete(s.by, flightKey{f.run.layer, digest})
	if s.many[digest]--; s.many[digest] == 0 {
		delete(s.many, digest)
	}
	s.mu.Unlock()
	f.err = err
	close(f.done)
}
