package blob

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// A Stream hands out a range of a blob, from as many requests as it takes. When
// one fails, it asks the next host for the rest, and after the last host it
// waits and begins anew, until it is refused by all of them or the line's
// deadline has passed without a byte. It then ends with an [*Error].
//
// [View.Range] returns it as an io.ReadCloser. Its methods are for one
// goroutine, but for Hurry and Relax, which anybody may call.
type Stream struct {
	// The context of the Range call, which a reader cannot be given later.
	ctx  context.Context
	blob *Blob
	turn turn

	rest  span   // still to come
	reply *reply // that is being read; nil between requests
	host  *host  // that sent the last bytes
	heard time.Time
	some  int64 // bytes since then
	trial trial
	err   error // that Read returns from now on
	probe bool  // any answer will do
}

func newStream(ctx context.Context, b *Blob, p Priority, want span) *Stream {
	return &Stream{ctx: ctx, blob: b, rest: want, turn: turn{queue: &b.line.queue, blob: b, priority: p}}
}

// Read waits for a turn and a host if need be.
func (s *Stream) Read(p []byte) (int, error) {
	for s.err == nil && len(p) > 0 {
		if s.rest.n == 0 {
			s.err = io.EOF
		} else if s.reply == nil {
			s.err = s.connect()
		} else if n, err := s.advance(p); n > 0 {
			return n, nil
		} else if err != nil {
			s.lost(err)
		}
	}
	return 0, s.err
}

// Close ends the stream. What is under way is lost.
func (s *Stream) Close() error {
	s.drop()
	s.err = io.ErrClosedPipe
	return nil
}

// Hurry makes the stream Wanted, because somebody waits for it by now. It may be
// called at any time.
func (s *Stream) Hurry() { s.turn.raise(Wanted) }

// Relax makes the stream Prefetch, if it is Wanted, because what somebody waited
// for has come. Hurry may follow. It may be called at any time.
func (s *Stream) Relax() { s.turn.lower(Prefetch) }

// Corrupt says that bytes the stream has handed out are wrong. What follows,
// here and for the blob's next readers, comes from another host; if there is
// none, past caches and over another connection.
func (s *Stream) Corrupt() {
	s.blob.line.counts.corrupt.Add(1)
	s.blob.spool.drop()
	s.blob.size.Store(0)
	if s.host != nil {
		s.host.suspect()
		s.host.fails()
	}
	s.drop()
}

// advance reads from the reply.
func (s *Stream) advance(p []byte) (int, error) {
	n, err := s.pull(p[:min(int64(len(p)), s.reply.at.n)])
	if n > 0 {
		s.rest.off, s.rest.n = s.rest.off+int64(n), s.rest.n-int64(n)
		s.reply.at.n -= int64(n)
		s.hears(int64(n))
	}
	if s.reply.at.n == 0 {
		s.drop()
	} else if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// pull reads from the reply when those who go first let it.
func (s *Stream) pull(p []byte) (int, error) {
	if s.reply.local {
		return s.reply.Read(p)
	}
	allowed, waited := s.turn.yield(s.ctx, len(p))
	s.reply.paused = s.reply.paused || waited
	return s.reply.Read(p[:allowed])
}

// drop ends the request, if there is one, and gives the turn back.
func (s *Stream) drop() {
	if s.reply != nil {
		s.reply.Close()
		s.reply = nil
	}
	s.turn.release()
}

// connect asks one host after another until one answers.
func (s *Stream) connect() error {
	for s.reply == nil {
		if err := s.ctx.Err(); err != nil {
			return s.fail(err, false)
		}
		if ready, err := s.spooled(); ready || err != nil {
			return err
		}
		h := s.blob.roster.pick(s.trial.tried)
		if h == nil {
			if err := s.pause(); err != nil {
				return err
			}
			continue
		}
		s.turn.host = h.host
		if err := s.turn.take(s.ctx); err != nil {
			return s.fail(err, false)
		}
		s.host, s.heard, s.some = h, time.Now(), 0
		if err := s.ask(); err != nil {
			s.lost(err)
		}
	}
	return nil
}

// ask asks the host for what is still to come, or for as much of it as one
// request may bring.
func (s *Stream) ask() (err error) {
	if s.rest.off == suffix {
		s.reply, err = s.host.tail(s.ctx, s.rest.n, s.stall())
	} else {
		want := span{s.rest.off, min(s.rest.n, s.blob.line.piece())}
		s.reply, err = s.host.get(s.ctx, want, s.stall())
	}
	if err != nil {
		s.reply = nil
		return err
	}
	s.turn.arrives()
	s.blob.peer.Store(s.host.peer)
	if s.host.answered != nil {
		s.host.answered()
	}
	if s.probe {
		return nil
	}
	if s.reply.whole {
		return s.spool()
	}
	if s.reply.size != unknown {
		s.blob.size.Store(s.reply.size)
	}
	switch {
	case s.rest.off == suffix: // of which there may be less than was asked for
		n := min(s.rest.n, s.reply.size)
		s.rest = span{s.reply.size - n, n}
	case s.reply.size != unknown:
		s.rest.n = min(s.rest.n, s.reply.size-s.rest.off)
	}
	return nil
}

// spool keeps the whole blob that the host sends, which connect then finds.
func (s *Stream) spool() error {
	size, err := s.wholeSize()
	if err != nil {
		return err
	}
	spool := &s.blob.spool
	if !spool.begin(&s.turn) {
		s.drop()
		return nil // somebody else does
	}
	n, err := spool.fill(s.host, pull(s.pull), size)
	s.hears(n)
	s.drop()
	return err
}

// wholeSize returns the size of the blob that comes whole. What a proxy or a
// sign-in page says instead has another one, and must not be kept.
func (s *Stream) wholeSize() (int64, error) {
	size, known := s.reply.size, cmp.Or(s.blob.size.Load(), unknown)
	if size == unknown {
		return known, nil
	}
	if known != unknown && size != known {
		s.blob.size.Store(0) // that may be the wrong one
		return 0, &fault{fmt.Sprintf("a blob of %d bytes, which has %d", size, known)}
	}
	if s.rest.off >= size {
		return 0, outside(s.rest, size)
	}
	return size, nil
}

// hears begins the deadline anew when enough has come: a registry that lets it
// trickle must not keep a reader for ever.
func (s *Stream) hears(n int64) {
	if s.some += n; s.some >= trickle || s.rest.n == 0 {
		s.heard, s.some, s.trial = time.Now(), 0, trial{}
	}
}

// spooled takes the range from the blob's spool, if it has one. One that lacks
// the range is not the blob, and its host has failed.
func (s *Stream) spooled() (bool, error) {
	reply, err := s.blob.spool.reply(s.ctx, s.rest, &s.turn)
	if errors.Is(err, errRange) {
		s.host, s.heard, s.some = s.blob.spool.reject(), time.Now(), 0
		s.lost(err)
		return false, nil
	}
	if err != nil {
		return false, s.fail(err, true)
	}
	if reply == nil {
		return false, nil
	}
	s.reply, s.rest, s.host = reply, reply.at, reply.host
	return true, nil
}

type pull func([]byte) (int, error)

func (p pull) Read(b []byte) (int, error) { return p(b) }

// stall is how long the host may say nothing: twice as long after each stall.
func (s *Stream) stall() time.Duration {
	o := &s.blob.line.options
	return min(o.Stall<<min(s.trial.stalls, 10), max(o.Stall, o.Deadline))
}

// lost ends a request that has failed. The next one goes elsewhere, or waits.
func (s *Stream) lost(err error) {
	s.drop()
	if s.ctx.Err() != nil {
		return // the context ended it
	}
	s.blob.line.counts.retries.Add(1)
	s.host.fails()
	s.trial.add(s.host.key, err, s.heard)
}

// pause waits after all hosts have failed, or gives up.
func (s *Stream) pause() error {
	t := &s.trial
	// A source that has no hosts is a failure, so that none means no source.
	// The second time, hosts have been asked for with fresh credentials.
	if t.refused() && t.rounds > 0 || len(t.failures) == 0 {
		return s.fail(cmp.Or(t.last(), s.blob.roster.nobody()), true)
	}
	if !t.refused() {
		deadline := s.blob.line.options.Deadline
		left := deadline - time.Since(t.since)
		if left <= 0 {
			return s.fail(fmt.Errorf("gave up after %v: %w", deadline, t.last()), false)
		}
		if err := s.sleep(min(t.wait(), left)); err != nil {
			return s.fail(err, false)
		}
	}
	s.blob.roster.refresh()
	t.next()
	return nil
}

// sleep waits, but not longer than until there are newer sources.
func (s *Stream) sleep(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.blob.roster.news():
	case <-s.ctx.Done():
	}
	return s.ctx.Err()
}

// fail makes the error that ends the stream.
func (s *Stream) fail(err error, refused bool) error {
	e := &Error{Digest: s.blob.digest, Err: err, refused: refused && s.ctx.Err() == nil}
	if s.host != nil {
		e.Host = s.host.host
	}
	if s.ctx.Err() == nil {
		s.blob.line.counts.failures.Add(1)
		return e
	}
	e.Err = context.Cause(s.ctx)
	if last := s.trial.last(); last != nil {
		e.Err = fmt.Errorf("%w (last: %w)", e.Err, last)
	}
	return e
}
