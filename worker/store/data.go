package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
)

// A place is where the contents of a file are on disk.
type place struct {
	*os.File
	start int64 // of the contents in the file
	own   bool  // the file is this one's, to be closed
}

func (p *place) release() error {
	if !p.own {
		return nil
	}
	return p.Close()
}

// place opens the place of a node. That of a large file is made when it is
// first written to.
func (l *Layer) place(n Node, flags int) (place, error) {
	f := l.index.node(n)
	if !l.index.isLarge(&f) {
		return place{File: l.small, start: f.Small}, nil
	}
	file, err := os.OpenFile(l.largeName(n), flags, 0o600)
	return place{File: file, own: true}, err
}

const (
	forReading = os.O_RDONLY
	forWriting = os.O_CREATE | os.O_WRONLY
)

func (l *Layer) largeName(n Node) string {
	return filepath.Join(l.dir, "large", strconv.FormatUint(uint64(n), 10))
}

// pieces are buffers through which chunks pass.
var pieces = sync.Pool{New: func() any { return new([128 << 10]byte) }}

// errCorrupt is what the error of bytes that are not the wanted ones wraps.
var errCorrupt = errors.New("corrupt")

// save writes a chunk from a reader and marks it, if it is the right one.
func (l *Layer) save(c uint32, from io.Reader) error {
	k := l.index.chunk(c)
	to, err := l.place(k.Node, forWriting)
	if err != nil {
		return err
	}
	at := io.NewOffsetWriter(to, to.start+k.At)
	err = digested(&k, from, &checkedWriter{at, l.store.checkSpace, int64(k.Size)})
	if err = errors.Join(err, to.release()); err != nil {
		return err
	}
	return l.mark(c)
}

// noSpace is the error of contents that are not written because of Options.CheckSpace.
type noSpace struct{ error }

func (e noSpace) Unwrap() error { return e.error }

// A checkedWriter writes left bytes while there is room for them: other writers use
// the same disk.
type checkedWriter struct {
	to         io.Writer
	checkSpace func(bytes int64) error
	left       int64
}

func (w *checkedWriter) Write(p []byte) (int, error) {
	if err := w.checkSpace(w.left); err != nil {
		return 0, noSpace{err}
	}
	n, err := w.to.Write(p)
	w.left -= int64(n)
	return n, err
}

// verify says whether a chunk is on disk as it should be.
func (l *Layer) verify(c uint32) bool {
	k := l.index.chunk(c)
	from, err := l.place(k.Node, forReading)
	if err != nil {
		return false
	}
	defer from.release()
	return digested(&k, io.NewSectionReader(from, from.start+k.At, int64(k.Size)), io.Discard) == nil
}

// digested copies the contents of a chunk and compares their digest.
func digested(k *chunk, from io.Reader, to io.Writer) error {
	piece := pieces.Get().(*[128 << 10]byte)
	defer pieces.Put(piece)
	sum := sha256.New()
	for left := int64(k.Size); left > 0; {
		p := piece[:min(left, int64(len(piece)))]
		if _, err := io.ReadFull(from, p); err != nil {
			return fmt.Errorf("%w: %w", errCorrupt, noEOF(err))
		}
		sum.Write(p)
		if _, err := to.Write(p); err != nil {
			return err
		}
		left -= int64(len(p))
	}
	if got := [32]byte(sum.Sum(nil)); got != k.Digest {
		return fmt.Errorf("%w: the digest of the contents is sha256:%x, want sha256:%x", errCorrupt, got, k.Digest)
	}
	return nil
}

// noEOF keeps an early end from being taken for the end of a file.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
