package lazy

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/blob"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// tailSize is how much of the end of a blob is asked for, in bytes, before
// anybody knows how large its TOC is. That of a Debian with Python takes half of
// it, and 400 Mbit/s carry this much in one round trip of 20 ms.
const tailSize = 512 << 10

// tocAhead is how much of a TOC in front of that is fetched ahead of its use, and
// kept in memory meanwhile: 60,000 files take about as much.
const tocAhead = 4 << 20

// lookahead fetches the ends of blobs, with their TOCs, before they are asked
// for. BuildKit prepares one layer after the other, and tells with the first which
// will follow. It is safe for concurrent use.
type lookahead struct {
	ctx   context.Context // ends with the daemon
	close context.CancelFunc

	mu    sync.Mutex
	tails map[digest.Digest]*tail
}

type tail struct {
	done  chan struct{}
	bytes []byte
	size  int64 // of the blob
	err   error
}

func newLookahead() *lookahead {
	ctx, cancel := context.WithCancel(context.Background())
	return &lookahead{ctx: ctx, close: cancel, tails: map[digest.Digest]*tail{}}
}

// start fetches the end of a blob, unless somebody does.
func (a *lookahead) start(d digest.Digest, open func() *blob.Blob) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tails[d] != nil {
		return
	}
	t := &tail{done: make(chan struct{})}
	a.tails[d] = t
	go func() {
		ctx, cancel := context.WithTimeout(a.ctx, patience)
		defer cancel()
		t.bytes, t.size, t.err = fetchTOC(ctx, open())
		close(t.done)
		time.AfterFunc(patience, func() { a.forget(d, t) })
	}()
}

// fetchTOC returns the end of a blob, with all of the TOC unless that is very
// large.
func fetchTOC(ctx context.Context, b *blob.Blob) ([]byte, int64, error) {
	tail, size, err := b.Tail(ctx, tailSize)
	if err != nil {
		return nil, 0, err
	}
	off, n := store.MissingTOC(tail, size)
	if n == 0 || n > tocAhead {
		return tail, size, nil
	}
	r, err := b.With(blob.Wanted).Range(ctx, off, n)
	if err != nil {
		return nil, 0, err
	}
	defer r.Close()
	toc := make([]byte, n, size-off)
	_, err = io.ReadFull(r, toc)
	return append(toc, tail...), size, err
}

func (a *lookahead) forget(d digest.Digest, t *tail) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tails[d] == t {
		delete(a.tails, d)
	}
}

// take returns the end of a blob. One that could not be fetched ahead, perhaps
// with credentials that were good for others only, gets another try.
func (a *lookahead) take(ctx context.Context, d digest.Digest, b *blob.Blob) ([]byte, int64, error) {
	a.mu.Lock()
	t := a.tails[d]
	delete(a.tails, d)
	a.mu.Unlock()
	if t != nil {
		select {
		case <-t.done:
			if t.err == nil {
				return t.bytes, t.size, nil
			}
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		}
	}
	return b.Tail(ctx, tailSize)
}
