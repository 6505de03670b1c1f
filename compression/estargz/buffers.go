package estargz

import (
	"context"
	"sync"
)

// buffers lends batches of two sizes, for small files and for large chunks,
// against the memory of the pool.
type buffers struct {
	pool  *Pool
	small int
	large int

	mu   sync.Mutex
	lent map[*batch]struct{}

	filling *batch // by the one who got it last; nil once it is submitted
}

func newBuffers(opts Options) *buffers {
	return &buffers{
		pool: opts.Pool,
		// Twice the least contents of a member, so that headers between
		// small files seldom close it early.
		small: max(batchSize, 2*int(opts.MinChunkSize)),
		large: int(opts.ChunkSize) + tailRoom,
		lent:  map[*batch]struct{}{},
	}
}

// get waits for the memory of a batch with room for n bytes of tar.
func (s *buffers) get(ctx context.Context, n int) (*batch, error) {
	size := s.small
	if n > size {
		size = s.large
	}
	reserved, err := s.pool.reserve(ctx, 2*int64(size)) // with its output
	if err != nil {
		return nil, err
	}
	b := s.pool.batch(size)
	b.tar, b.members, b.blob = b.tar[:0], b.members[:0], b.blob[:0]
	b.fill, b.filled = nil, make(chan struct{})
	b.reserved = reserved
	b.users.Store(2) // hashTar and writeBlob
	s.mu.Lock()
	s.lent[b], s.filling = struct{}{}, b
	s.mu.Unlock()
	return b, nil
}

// submitted is told before a batch is handed on.
func (s *buffers) submitted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.filling = nil
}

// put takes a batch back once both of its readers are done with it.
func (s *buffers) put(b *batch) {
	if b.users.Add(-1) > 0 {
		return
	}
	s.mu.Lock()
	delete(s.lent, b)
	s.mu.Unlock()
	reserved := b.reserved
	s.pool.reuse(b)
	s.pool.release(reserved)
}

// close gives back the memory of what an error left lent.
func (s *buffers) close() {
	for b := range s.lent {
		s.pool.release(b.reserved)
	}
}
