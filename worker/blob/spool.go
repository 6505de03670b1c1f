package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// maxSpooled is how many bytes all spools of a line may hold.
const maxSpooled = 4 << 30

var errSpoolFull = errors.New("the server knows no ranges, and there is no room for all of the blob")

// A budget is bytes that may still be taken, as long as there is room for them.
type budget struct {
	left       atomic.Int64
	checkSpace func(bytes int64) error
}

// has says why n bytes could not be taken just now.
func (b *budget) has(n int64) error {
	if b.left.Load() < n {
		return errSpoolFull
	}
	if err := b.checkSpace(n); err != nil {
		return fmt.Errorf("%w: %w", errSpoolFull, err)
	}
	return nil
}

// take takes n bytes, or says why it does not.
func (b *budget) take(n int64) error {
	if err := b.has(n); err != nil {
		return err
	}
	if b.left.Add(-n) < 0 {
		b.left.Add(n)
		return errSpoolFull
	}
	return nil
}

// keepSpool is how long a whole blob, or what came of it, is kept after its
// last use.
const keepSpool = time.Minute

// A spool has all of a blob whose server sends it whole or not at all. Such a
// blob is downloaded once, by the first who wants something of it, instead of
// once for each range. The file has no name, so that nothing is left of it.
type spool struct {
	dir    string
	budget *budget

	mu       sync.Mutex
	file     *os.File // nil until something was written
	have     int64    // bytes from the start
	complete bool
	host     *host // that sent it
	readers  int
	idle     *time.Timer // drops it
	filler   *turn       // of the stream that fills it; nil if none does
	filled   chan struct{}
}

// reply reads from the spool if it is complete, and waits if it is being
// filled. It returns nil if there is none.
func (s *spool) reply(ctx context.Context, want span, t *turn) (*reply, error) {
	for {
		s.mu.Lock()
		if s.filler == nil {
			defer s.mu.Unlock()
			return s.open(want)
		}
		filler, filled := s.filler, s.filled
		s.mu.Unlock()
		filler.raise(t.level())
		select {
		case <-filled:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *spool) open(want span) (*reply, error) {
	if !s.complete {
		return nil, nil
	}
	if want.off == suffix {
		want.n = min(want.n, s.have)
		want.off = s.have - want.n
	}
	if want.off >= s.have {
		return nil, outside(want, s.have)
	}
	want.n = min(want.n, s.have-want.off)
	s.readers++
	body := &spooled{io.NewSectionReader(s.file, want.off, want.n), s}
	return &reply{ReadCloser: body, at: want, size: s.have, host: s.host, local: true}, nil
}

// A spooled range is read from the spool.
type spooled struct {
	*io.SectionReader
	spool *spool
}

func (r *spooled) Close() error {
	s := r.spool
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers--
	s.keep()
	return nil
}

// keep begins the time anew after which the spool is dropped.
func (s *spool) keep() {
	if s.idle == nil {
		s.idle = time.AfterFunc(keepSpool, s.dropIdle)
	}
	s.idle.Reset(keepSpool)
}

// begin makes a turn's stream the one that fills the spool, unless there is
// one.
func (s *spool) begin(t *turn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.filler != nil || s.complete {
		return false
	}
	s.filler, s.filled = t, make(chan struct{})
	return true
}

// fill takes the blob from its start on and returns how much of it is new. If
// it breaks, the next one's beginning is skipped: to that server ranges mean
// nothing. Size is that of the blob, which ends there whatever the server
// sends, or unknown.
func (s *spool) fill(h *host, body io.Reader, size int64) (int64, error) {
	n, err := s.add(body, size)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.have += n
	s.complete, s.host = err == nil, h
	close(s.filled)
	s.filler = nil
	s.keep()
	return n, err
}

// add appends to the file what it does not have yet. Only the filler writes.
func (s *spool) add(body io.Reader, size int64) (int64, error) {
	if s.file == nil {
		file, err := os.CreateTemp(s.dir, "blob-")
		if err != nil {
			return 0, err
		}
		os.Remove(file.Name())
		s.mu.Lock()
		s.file, s.have = file, 0
		s.mu.Unlock()
	}
	if err := s.budget.has(max(size-s.have, 1)); err != nil {
		return 0, err
	}
	if n, err := io.CopyN(io.Discard, body, s.have); err == io.EOF {
		err := &fault{fmt.Sprintf("a blob of %d bytes, of which %d came before", n, s.have)}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.clear() // it may have been what came before that was wrong
		return 0, err
	} else if err != nil {
		return 0, err
	}
	to := &budgeted{io.NewOffsetWriter(s.file, s.have), s.budget}
	if size == unknown {
		return io.Copy(to, body)
	}
	n, err := io.CopyN(to, body, size-s.have)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// budgeted writes as long as there is a budget.
type budgeted struct {
	io.Writer
	budget *budget
}

func (w *budgeted) Write(p []byte) (int, error) {
	if err := w.budget.take(int64(len(p))); err != nil {
		return 0, err
	}
	n, err := w.Writer.Write(p)
	w.budget.left.Add(int64(len(p) - n))
	return n, err
}

// drop forgets the blob, because it is wrong.
func (s *spool) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.complete {
		s.clear()
	}
}

// reject drops the blob, and returns the host that sent it.
func (s *spool) reject() *host {
	s.drop()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.host
}

func (s *spool) dropIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file != nil && s.readers == 0 && s.filler == nil {
		s.clear()
	}
}

// clear closes the file. Streams that still read it ask the host again.
func (s *spool) clear() {
	s.file.Close()
	s.budget.left.Add(s.have)
	s.file, s.have, s.complete = nil, 0, false
}
