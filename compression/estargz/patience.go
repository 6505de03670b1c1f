package estargz

import (
	"context"
	"io"
	"time"
)

// patience is how long an input may keep a writer waiting before the batch that is
// being filled no longer counts against the memory of the pool. Otherwise a few
// inputs that stall, of layers whose registry hangs, would hold all of it, and
// every other writer would wait for them.
const patience = time.Second

// A patientReader is the input of a writer. While it stalls, what the writer has
// reserved for the batch that it fills is lent to others.
type patientReader struct {
	io.Reader
	after    time.Duration
	lend     func() (reserved int64)
	takeBack func(reserved int64) error
}

func (r *patientReader) Read(p []byte) (int, error) {
	lent := make(chan int64, 1)
	timer := time.AfterFunc(r.after, func() { lent <- r.lend() })
	n, err := r.Reader.Read(p)
	if timer.Stop() {
		return n, err
	}
	if problem := r.takeBack(<-lent); problem != nil {
		return 0, problem
	}
	return n, err
}

// lend gives back what is reserved for the batch that is being filled. Whoever
// fills it waits meanwhile.
func (s *buffers) lend() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.filling == nil {
		return 0
	}
	n := s.filling.reserved
	s.filling.reserved = 0
	s.pool.release(n)
	return n
}

// takeBack reserves again what was lent.
func (s *buffers) takeBack(ctx context.Context, n int64) error {
	if n == 0 {
		return nil
	}
	n, err := s.pool.reserve(ctx, n)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.filling.reserved = n
	return nil
}
