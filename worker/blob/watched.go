package blob

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// A stall is the end of a request that nothing was heard of for a time.
type stall struct{ after time.Duration }

func (s *stall) Error() string { return fmt.Sprintf("no byte came for %v", s.after) }

const (
	// trickle is how many bytes a request must bring within a few times the
	// stall. A line that carries less is as good as dead: at 1 kB/s, the chunk of
	// a small library takes ten minutes.
	trickle = 16 << 10
	few     = 3
)

// A trickling is the end of a request that has brought next to nothing.
type trickling struct {
	bytes int64
	after time.Duration
}

func (e *trickling) Error() string {
	return fmt.Sprintf("no more than %d bytes came in %v", e.bytes, e.after.Round(time.Second))
}

// watch makes a request and ends it when nothing comes for a time: neither the
// header, nor more of the body while it is read.
func watch(next http.RoundTripper, r *http.Request, after time.Duration) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	b := &watchedBody{ctx: ctx, cancel: cancel, after: after}
	b.timer = time.AfterFunc(after, func() { cancel(&stall{after}) })
	resp, err := next.RoundTrip(r.WithContext(ctx))
	b.timer.Stop()
	if err != nil {
		err = b.cause(err)
		cancel(nil)
		return nil, err
	}
	b.ReadCloser, resp.Body = resp.Body, b
	return resp, nil
}

// A watchedBody has its own context, which ends with it.
type watchedBody struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	after  time.Duration
	timer  *time.Timer

	spent time.Duration // waiting for the last bytes
	bytes int64         // these
	dead  error         // of the reads that follow
}

func (b *watchedBody) Read(p []byte) (int, error) {
	if b.dead != nil {
		return 0, b.dead
	}
	b.timer.Reset(b.after)
	start := time.Now()
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	b.spent, b.bytes = b.spent+time.Since(start), b.bytes+int64(n)
	if b.bytes >= trickle {
		b.spent, b.bytes = 0, 0
	} else if err == nil && b.spent > few*b.after {
		b.dead = &trickling{b.bytes, b.spent}
	}
	if err != nil && err != io.EOF {
		err = b.cause(err)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// cause says that the request has stalled where net/http says that it was
// cancelled.
func (b *watchedBody) cause(err error) error {
	if s, ok := context.Cause(b.ctx).(*stall); ok {
		return s
	}
	return err
}
