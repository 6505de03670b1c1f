package store

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sort"
	"time"
)

// ReadAt reads from a regular file, as io.ReaderAt has it. It waits until what
// is asked for is here and verified, or for the end of the context.
func (l *Layer) ReadAt(ctx context.Context, n Node, p []byte, off int64) (int, error) {
	if err := l.Wait(ctx, n, off, int64(len(p))); err != nil {
		return 0, err
	}
	return l.ReadPresent(n, p, off)
}

// Wait waits until a part of a regular file is here and verified, or for the end
// of the context.
func (l *Layer) Wait(ctx context.Context, n Node, off, size int64) error {
	f := l.index.node(n)
	if !f.isFile() || off < 0 {
		return l.errorf("reading node %d from %d: %w", n, off, fs.ErrInvalid)
	}
	if off >= f.Size {
		return nil
	}
	return l.need(ctx, &f, off, min(size, f.Size-off))
}

// ReadPresent reads as ReadAt what Wait has waited for.
func (l *Layer) ReadPresent(n Node, p []byte, off int64) (int, error) {
	f := l.index.node(n)
	if off >= f.Size {
		return 0, io.EOF
	}
	whole := int64(len(p)) <= f.Size-off
	if !whole {
		p = p[:f.Size-off]
	}
	if err := l.readHere(n, p, off); err != nil {
		return 0, err
	}
	if !whole {
		return len(p), io.EOF
	}
	return len(p), nil
}

// need waits for the chunks of a part of a file.
func (l *Layer) need(ctx context.Context, f *node, off, size int64) error {
	first, last := l.chunksOf(f, off, size)
	if l.allHere(first, last) {
		l.hits.Add(1)
		return nil
	}
	l.misses.Add(1)
	start := time.Now()
	defer func() { l.store.waited(time.Since(start)) }()
	for c := first; c < last; c++ {
		if l.present.has(c) {
			continue
		}
		if err := l.obtain(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// Here says whether a part of a file can be read without waiting. There is no
// part of what is no regular file, or behind its end.
func (l *Layer) Here(n Node, off, size int64) bool {
	f := l.index.node(n)
	if !f.isFile() || off < 0 || off >= f.Size || size <= 0 {
		return true
	}
	return l.allHere(l.chunksOf(&f, off, min(size, f.Size-off)))
}

// chunksOf returns the chunks of a part of a file, from the first to before
// the last.
func (l *Layer) chunksOf(f *node, off, size int64) (first, last uint32) {
	starts := func(at int64) uint32 { // how many chunks start before
		return uint32(sort.Search(int(f.Count), func(i int) bool {
			return l.index.chunk(f.First+uint32(i)).At >= at
		}))
	}
	return f.First + starts(off+1) - 1, f.First + starts(off+size)
}

func (l *Layer) allHere(first, last uint32) bool {
	for c := first; c < last; c++ {
		if !l.present.has(c) {
			return false
		}
	}
	return true
}

// readHere reads what is here.
func (l *Layer) readHere(n Node, p []byte, off int64) error {
	from, err := l.place(n, forReading)
	if err != nil {
		return l.errorf("%w", err)
	}
	_, err = from.ReadAt(p, from.start+off)
	if err = errors.Join(noEOF(err), from.release()); err != nil {
		return l.errorf("%w", err)
	}
	return nil
}

// Backing opens the file on disk that holds a large file and nothing else, if
// all of it is here. The caller closes it and must not write to it.
func (l *Layer) Backing(n Node) (*os.File, bool) {
	f := l.index.node(n)
	if !l.index.isLarge(&f) || !l.allHere(f.First, f.First+f.Count) {
		return nil, false
	}
	file, err := os.Open(l.largeName(n))
	return file, err == nil
}

// Small returns the contents of a file of less than 1 MiB, if all of it is
// here.
func (l *Layer) Small(n Node) ([]byte, bool) {
	f := l.index.node(n)
	if !f.isFile() || l.index.isLarge(&f) || !l.allHere(f.First, f.First+f.Count) {
		return nil, false
	}
	p := make([]byte, f.Size)
	return p, l.readHere(n, p, 0) == nil
}
