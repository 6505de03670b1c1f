package lazy

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/blob"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

const (
	// tailSize is how much of the end of a blob is asked for, in bytes, before
	// anybody knows how large its TOC is. That of a Debian with Python takes half of
	// it, and 400 Mbit/s carry this much in one round trip of 20 ms.
	tailSize = 512 << 10

	// tocAhead is how much of a TOC in front of that is fetched ahead of its use, and
	// kept in memory meanwhile: 60,000 files take about as much.
	tocAhead = 4 << 20

	// aheadSize is how many bytes are kept of all blobs together. Which ones are
	// fetched ahead, and how large their TOCs are, images and registries say.
	aheadSize = 64 << 20

	// patience is how long what was fetched ahead of its use is kept.
	patience = time.Minute
)

// lookahead fetches the ends of blobs, with their TOCs, before they are asked
// for. BuildKit prepares one layer after the other, and tells with the first which
// will follow. What one build fetches ahead others may take that have the blob
// from the same repositories. It is safe for concurrent use.
type lookahead struct {
	ctx   context.Context // ends with the daemon
	close context.CancelFunc

	mu    sync.Mutex
	tails map[string]*tail
	left  int64 // bytes that may still be kept
}

type tail struct {
	done  chan struct{}
	of    string // the readers with whose credentials it came
	bytes []byte
	size  int64 // of the blob
	err   error
	taken int64 // bytes of the lookahead's, with its lock
}

func newLookahead() *lookahead {
	ctx, cancel := context.WithCancel(context.Background())
	return &lookahead{ctx: ctx, close: cancel, tails: map[string]*tail{}, left: aheadSize}
}

// tailOf names the end of a blob that some sources have, whoever reads them.
func tailOf(d digest.Digest, sources []blob.Source) string {
	name := d.String()
	for _, s := range sources {
		name += fmt.Sprintf(" %q %q %q", s.Registry, s.Repository, s.Digest)
	}
	return name
}

func readersOf(sources []blob.Source) (names string) {
	for _, s := range sources {
		names += fmt.Sprintf(" %q", s.Reader)
	}
	return names
}

// start fetches the end of a blob, unless somebody does or there is no room.
func (a *lookahead) start(line *blob.Line, d digest.Digest, sources []blob.Source) {
	name, t := tailOf(d, sources), &tail{done: make(chan struct{}), of: readersOf(sources)}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tails[name] != nil || !a.occupy(t, tailSize) {
		return
	}
	a.tails[name] = t
	go func() {
		ctx, cancel := context.WithTimeout(a.ctx, patience)
		defer cancel()
		t.bytes, t.size, t.err = fetchTOC(ctx, line.Open(d, sources...), func(n int64) bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.occupy(t, n)
		})
		a.came(name, t)
	}()
}

// occupy takes n bytes more for a tail, if as many are left.
func (a *lookahead) occupy(t *tail, n int64) bool {
	if n > a.left {
		return false
	}
	a.left -= n
	t.taken += n
	return true
}

// shrink gives bytes back.
func (a *lookahead) shrink(t *tail, to int64) {
	a.left += t.taken - to
	t.taken = to
}

// came is called when the end of a blob has been fetched, or will not be.
func (a *lookahead) came(name string, t *tail) {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(t.done)
	a.shrink(t, int64(len(t.bytes)))
	time.AfterFunc(patience, func() { a.forget(name, t) })
}

func (a *lookahead) forget(name string, t *tail) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tails[name] == t {
		delete(a.tails, name)
		a.shrink(t, 0)
	}
}

// othersTail is how long a build waits for what another one fetches ahead. The
// credentials of that one may be long in coming.
const othersTail = time.Second

// take returns the end of a blob, or nil if it was not fetched ahead. One that
// could not be gets another try from whoever asks for it. Own is whether it came
// with the credentials of these sources.
func (a *lookahead) take(ctx context.Context, d digest.Digest, sources []blob.Source) (bytes []byte, size int64, own bool, err error) {
	name := tailOf(d, sources)
	a.mu.Lock()
	t := a.tails[name]
	a.mu.Unlock()
	if t == nil {
		return nil, 0, true, nil
	}
	var enough <-chan time.Time
	if own = t.of == readersOf(sources); !own {
		enough = time.After(othersTail)
	}
	select {
	case <-t.done:
	case <-enough:
		return nil, 0, true, nil
	case <-ctx.Done():
		return nil, 0, own, context.Cause(ctx)
	}
	a.forget(name, t)
	if t.err != nil {
		return nil, 0, true, nil
	}
	return t.bytes, t.size, own, nil
}

// fetchTOC returns the end of a blob, with all of the TOC unless that is very
// large or there is no room for what the end lacks of it.
func fetchTOC(ctx context.Context, b *blob.Blob, occupy func(n int64) bool) ([]byte, int64, error) {
	tail, size, err := b.Tail(ctx, tailSize)
	if err != nil {
		return nil, 0, err
	}
	off, n := store.MissingTOC(tail, size)
	if n == 0 || n > tocAhead || !occupy(n) {
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
