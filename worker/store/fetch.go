package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
)

// fetch asks for the range of the run and saves its chunks as they come. At
// the end all flights have landed.
func (r *run) fetch(ctx context.Context, blobs *Blobs) {
	start := r.layer.offset(r.items)
	size := r.layer.end(r.items) - start
	f := &fetcher{layer: r.layer, left: r.items, at: start, waiting: r.waiting}
	if r.priority != wanted {
		f.cores.SetLimit(runtime.GOMAXPROCS(0))
	}
	from, err := blobs.at(r.priority).Range(ctx, start, size)
	if err == nil {
		if s, ok := from.(interface{ Hurry() }); ok {
			defer context.AfterFunc(r.waiting, s.Hurry)()
		}
		r.layer.fetched.Add(size)
		f.from = from
		err = f.all(size)
		from.Close() // first: others may have waited for its end
		f.cores.Wait()
	}
	for _, i := range f.left {
		f.land(i, err)
	}
	f.complain()
}

// offset and end are where the members of some items start and end in the blob.
func (l *Layer) offset(items []item) int64 { return l.index.chunk(items[0].chunk).Offset }
func (l *Layer) end(items []item) int64 {
	k := l.index.chunk(items[len(items)-1].chunk)
	return k.end()
}

// within returns how many of the items have their members in the next n bytes,
// at least those of the first member.
func (l *Layer) within(items []item, n int64) int {
	start := l.offset(items)
	for i := range items {
		k := l.index.chunk(items[i].chunk)
		if k.Offset > start && k.end() > start+n {
			return i
		}
	}
	return len(items)
}

// A stream is the bytes of a range. It remembers how it failed.
type stream struct {
	r    io.Reader
	left int64
	err  error
}

// errShort is the end of the blob within a range. It is no error if all contents
// have come by then, since a range may go beyond the last member.
var errShort = fmt.Errorf("%w: its bytes ended early", errCorrupt)

func (s *stream) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.r.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	if s.left == 0 {
		return n, nil
	}
	if err == io.EOF {
		err = errShort
	}
	s.err = err
	return n, err
}

// A fetcher takes the stream of a run apart.
type fetcher struct {
	layer  *Layer
	from   io.Reader
	stream *stream       // of the same
	in     *bufio.Reader // of the same
	at     int64         // in the blob, of the next byte
	left   []item        // whose bytes did not arrive yet
	cores  errgroup.Group

	waiting context.Context       // the run's
	failed  atomic.Pointer[error] // why nothing more can be saved

	mu    sync.Mutex
	wrong []func() // land the items that came corrupt
}

// batchSize is how many compressed bytes of small files are decompressed
// together.
const batchSize = 64 << 10

// all reads a range of size bytes and saves its chunks. The first one somebody
// waits for, so that it is decompressed as it arrives, and the rest is in less of
// a hurry; the others may be on another core while the next ones arrive. The
// stream of who is waited for must not be held up, so that theirs take as many
// cores as there are. All ends when a chunk was corrupt: what is buffered comes
// from the same host.
func (f *fetcher) all(size int64) error {
	f.stream = &stream{r: f.from, left: size}
	f.in = bufio.NewReaderSize(f.stream, batchSize)
	err := f.member()
	if s, ok := f.from.(interface{ Relax() }); ok {
		s.Relax()
		if s, ok := f.from.(interface{ Hurry() }); ok && f.waiting.Err() != nil {
			s.Hurry() // somebody waits for what is still to come
		}
	}
	for err == nil && len(f.left) > 0 {
		if f.wasCorrupt() {
			return errAgain
		}
		batch := f.left[:f.layer.within(f.left, batchSize)]
		size := f.layer.end(batch) - f.layer.offset(batch)
		if f.layer.store.buffers.TryAcquire(size) {
			err = f.batch(batch, size)
		} else {
			err = f.member()
		}
		if failed := f.failed.Load(); failed != nil {
			return *failed
		}
	}
	if err == nil && !f.wasCorrupt() {
		_, _ = io.Copy(io.Discard, f.in) // a connection that is read to the end serves again
	}
	return err
}

// errAgain is the error of chunks whose run has ended before they came, because
// others were corrupt. They are fetched by another run.
var errAgain = errors.New("a chunk before it was corrupt")

func (f *fetcher) wasCorrupt() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.wrong) > 0
}

// complain tells the stream that its bytes were wrong, and then lands the items
// that were: who waits for them tries again at once, and should be sent to
// another host by then.
func (f *fetcher) complain() {
	if len(f.wrong) == 0 {
		return
	}
	if s, ok := f.from.(interface{ Corrupt() }); ok {
		s.Corrupt()
	}
	for _, land := range f.wrong {
		land()
	}
}

// member saves the items of the next member as it arrives.
func (f *fetcher) member() error {
	items := f.left[:f.layer.within(f.left, 0)]
	if err := f.skip(f.layer.offset(items)); err != nil {
		return err
	}
	f.left = f.left[len(items):]
	member := &io.LimitedReader{R: f.in, N: f.layer.end(items) - f.at}
	f.save(items, member, f.stream)
	f.at = f.layer.end(items) - member.N
	if f.stream.err == errShort { // which may be ahead of what was taken apart
		return nil
	}
	return f.stream.err
}

// batch reads the members of some items, and another core saves them.
func (f *fetcher) batch(items []item, size int64) error {
	p := newBuffer(int(size))
	done := func() {
		buffers.Put(p)
		f.layer.store.buffers.Release(size)
	}
	start, came := f.layer.offset(items), 0
	err := f.skip(start)
	if err == nil {
		came, err = io.ReadFull(f.in, *p)
	}
	if err != nil && !isEnd(err) {
		done()
		return err
	}
	f.at = start + int64(came)
	f.left = f.left[len(items):]
	f.cores.Go(func() error {
		defer done()
		for len(items) > 0 {
			n := f.layer.within(items, 0)
			from, to := f.layer.offset(items)-start, f.layer.end(items[:n])-start
			member := (*p)[min(from, int64(came)):min(to, int64(came))]
			f.save(items[:n], bytes.NewReader(member), nil)
			items = items[n:]
		}
		return nil
	})
	return nil
}

// isEnd says whether a range has ended before the last member did. It may: ranges
// are made before it is known how long that is.
func isEnd(err error) bool {
	return errors.Is(err, errShort) || err == io.EOF || err == io.ErrUnexpectedEOF
}

// skip passes over what nobody needs.
func (f *fetcher) skip(to int64) error {
	n, err := io.CopyN(io.Discard, f.in, to-f.at)
	f.at += n
	return err
}

// save saves the items of one member. It may come from a stream that fails,
// which is then the reason.
func (f *fetcher) save(items []item, member io.Reader, from *stream) {
	z := unzippers.Get().(*gzip.Reader)
	defer unzippers.Put(z)
	broken := z.Reset(member)
	z.Multistream(false)
	contents := &counted{r: z}
	for _, i := range items {
		k := f.layer.index.chunk(i.chunk)
		if broken == nil {
			broken = contents.skipTo(int64(k.Inner))
		}
		err := fmt.Errorf("%w: %w", errCorrupt, broken)
		if broken == nil {
			err = f.layer.save(i.chunk, contents)
		}
		if err != nil && from != nil && from.err != nil {
			err = from.err
		}
		f.land(i, err)
	}
}

var errOrder = errors.New("the chunks of a member are not in their order")

// counted is what a member decompresses to. A chunk that is not saved may have
// been read in part.
type counted struct {
	r  io.Reader
	at int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.at += int64(n)
	return n, err
}

func (c *counted) skipTo(at int64) error {
	if at < c.at {
		return errOrder
	}
	_, err := io.CopyN(io.Discard, c, at-c.at)
	return noEOF(err)
}

// land ends the flight of an item. That of a corrupt one is left to complain.
func (f *fetcher) land(i item, err error) {
	l := f.layer
	switch {
	case err == nil || err == errAgain:
		l.land(i.chunk, i.flight, err)
		return
	case errors.Is(err, errCorrupt):
		k := l.index.chunk(i.chunk)
		err = l.errorf("its chunk at %d of the blob: %w", k.Offset, err)
		l.index.doubt(i.chunk)
		l.corrupt.Add(1)
		l.failure.Store(&err)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.wrong = append(f.wrong, func() { l.land(i.chunk, i.flight, err) })
		return
	case errors.As(err, new(*fs.PathError)):
		cause := err
		f.failed.Store(&cause)
		err = l.errorf("%w", err)
	case errors.As(err, new(noSpace)): // which is no reason against a smaller chunk
		err = l.errorf("%w", err)
	}
	if !errors.Is(err, context.Canceled) {
		l.failure.Store(&err)
	}
	l.land(i.chunk, i.flight, err)
}

var unzippers = sync.Pool{New: func() any { return new(gzip.Reader) }}

// buffers are for compressed members.
var buffers sync.Pool

func newBuffer(size int) *[]byte {
	p, _ := buffers.Get().(*[]byte)
	if p == nil || cap(*p) < size {
		b := make([]byte, max(size, 2*batchSize))
		p = &b
	}
	*p = (*p)[:size]
	return p
}
