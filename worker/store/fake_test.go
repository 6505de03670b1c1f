package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
)

// A fake is the blob of a layer, and remembers what was asked of it.
type fake struct {
	data   []byte
	window int64
	// answer, if set, may answer a request in another way than with its bytes.
	answer func(ctx context.Context, request int, p []byte) (io.ReadCloser, error)

	mu       sync.Mutex
	requests []span
	read     int64 // bytes
	corrupt  int   // calls of Corrupt
	hurried  int
	relaxed  []int64 // bytes that were read before
}

type span struct{ off, n int64 }

func (f *fake) Window() int64 { return max(f.window, 1) }

func (f *fake) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	f.mu.Lock()
	request := len(f.requests)
	f.requests = append(f.requests, span{off, n})
	f.mu.Unlock()
	if off < 0 || n <= 0 || off >= int64(len(f.data)) {
		panic(fmt.Sprintf("%d bytes from %d of %d", n, off, len(f.data)))
	}
	p := f.data[off:min(off+n, int64(len(f.data)))]
	if f.answer != nil {
		r, err := f.answer(ctx, request, p)
		if r != nil {
			r = fakeStream{r, f}
		}
		return r, err
	}
	return fakeStream{io.NopCloser(bytes.NewReader(p)), f}, nil
}

// told returns what was told of streams.
func (f *fake) told() (read int64, corrupt, hurried int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read, f.corrupt, f.hurried
}

// asked returns the requests so far.
func (f *fake) asked() []span {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]span(nil), f.requests...)
}

type fakeStream struct {
	io.ReadCloser
	f *fake
}

func (s fakeStream) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.f.read += int64(n)
	return n, err
}

func (s fakeStream) Corrupt() {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.f.corrupt++
}

func (s fakeStream) Hurry() {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.f.hurried++
}

func (s fakeStream) Relax() {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.f.relaxed = append(s.f.relaxed, s.f.read)
}

// all answers any purpose alike.
func (f *fake) all() Blobs { return Blobs{Wanted: f, Prefetch: f, Background: f} }
