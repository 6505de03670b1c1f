package estargz

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
)

const (
	blockSize = 512 // of a tar

	// batchSize is how much tar of small files one worker takes at a time:
	// enough to make the hand-over cheap, little enough to share evenly.
	batchSize = 1 << 20

	// tailRoom is kept free behind a large chunk for its padding and the
	// header that follows.
	tailRoom = 8 * blockSize

	readSize = 256 << 10

	// maxHeaders bounds what stands in front of one entry. The tar reader takes
	// extended headers and long names of 1 MiB each, and any number of them.
	maxHeaders = 4 << 20
)

var errManyHeaders = fmt.Errorf("more than %d bytes of headers in front of one entry", maxHeaders)

// A splitter cuts a tar into batches of members. Where it cuts depends on the
// tar and the options alone.
type splitter struct {
	tape     tape
	tar      *tar.Reader
	toc      tocBuilder
	chunk    int // largest contents of a chunk
	minChunk int // contents up to which chunks share a member

	// next makes a batch with room for n bytes of tar, submit hands it on.
	next   func(n int) (*batch, error)
	submit func(*batch)

	cur    *batch
	open   bool // the last member of cur may grow
	shared int  // contents in it
}

// A tape records what the tar reader reads of the tar besides contents, so
// that every byte is kept, padding and odd headers included.
type tape struct {
	r      io.Reader
	heads  []byte
	paused bool
}

func (t *tape) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if !t.paused {
		if len(t.heads)+n > maxHeaders {
			return 0, errManyHeaders
		}
		t.heads = append(t.heads, p[:n]...)
	}
	return n, err
}

// split reads the tar to its end. What it submitted before an error is of no
// use.
func (s *splitter) split(r io.Reader) error {
	s.tape.r = bufio.NewReaderSize(r, readSize)
	s.tar = tar.NewReader(&s.tape)
	padding := 0
	for {
		h, err := s.tar.Next()
		if errors.Is(err, tar.ErrInsecurePath) {
			err = nil // names are made safe where they are used
		}
		if err != nil && err != io.EOF {
			return fmt.Errorf("tar after %q: %w", s.toc.last, err)
		}
		if err := s.heads(padding); err != nil {
			return err
		}
		if err == io.EOF {
			break
		}
		if padding, err = s.entry(h); err != nil {
			return err
		}
	}
	if err := s.rest(); err != nil {
		return err
	}
	if s.cur == nil { // an empty tar: an empty member, lest there be no gzip at all
		if err := s.nextBatch(0); err != nil {
			return err
		}
		s.openMember()
	}
	s.closeMember()
	s.submit(s.cur)
	return s.toc.check()
}

// entry adds one file and returns how much padding its contents have.
func (s *splitter) entry(h *tar.Header) (padding int, err error) {
	e, err := newEntry(h)
	if err != nil || e == nil {
		return 0, err
	}
	file, err := s.toc.add(e)
	if err != nil {
		return 0, err
	}
	if e.Type != TypeReg || e.Size == 0 {
		return 0, nil
	}
	s.tape.paused = true
	err = s.contents(file)
	s.tape.paused = false
	if err != nil {
		return 0, fmt.Errorf("tar entry %q: %w", e.Name, err)
	}
	return int(-e.Size & (blockSize - 1)), nil
}

// contents cuts the contents of a regular file into chunks.
func (s *splitter) contents(f *tocFile) error {
	first := f.entry
	if isLandmark(first.Name) {
		s.closeMember() // a runtime fetches what stands before its member
	}
	for off := int64(0); off < first.Size; {
		n := min(first.Size-off, int64(s.chunk))
		e := first
		if off > 0 {
			e = &Entry{Name: first.Name, Type: TypeChunk}
			if err := s.toc.chunk(f, e); err != nil {
				return err
			}
		}
		e.ChunkOffset = off
		if n == int64(s.chunk) {
			e.ChunkSize = n
		}
		c := chunk{entry: e}
		if first.Size > int64(s.chunk) {
			c.file = first
		}
		if err := s.chunkContents(c, int(n)); err != nil {
			return err
		}
		off += n
	}
	return nil
}

func (s *splitter) chunkContents(c chunk, n int) error {
	if err := s.roomForChunk(n); err != nil {
		return err
	}
	b := s.cur
	c.start = len(b.tar)
	c.end = c.start + n
	b.tar = b.tar[:c.end]
	if _, err := io.ReadFull(s.tar, b.tar[c.start:]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	m := &b.members[len(b.members)-1]
	m.chunks = append(m.chunks, c)
	m.end, m.tail = c.end, c.end
	s.shared += n
	return nil
}

// roomForChunk makes the end of the last member the place for n bytes of
// contents: that of a new member, unless chunks may share one.
func (s *splitter) roomForChunk(n int) error {
	free := 0
	if s.cur != nil {
		free = cap(s.cur.tar) - len(s.cur.tar)
	}
	sharing := s.open && s.shared > 0 && s.shared < s.minChunk
	if sharing && n+blockSize <= free {
		return nil
	}
	s.closeMember()
	if n+blockSize > free {
		if err := s.nextBatch(n + tailRoom); err != nil {
			return err
		}
	}
	s.openMember()
	return nil
}

// heads adds what stood between two contents: the padding of the first, and
// the headers up to the second.
func (s *splitter) heads(padding int) error {
	heads := s.tape.heads
	if padding > len(heads) {
		return fmt.Errorf("tar after %q: %w", s.toc.last, io.ErrUnexpectedEOF)
	}
	if padding > 0 { // roomForChunk left room for it
		b := s.cur
		b.tar = append(b.tar, heads[:padding]...)
		m := &b.members[len(b.members)-1]
		m.end, m.tail = len(b.tar), len(b.tar)
		heads = heads[padding:]
	}
	err := s.tail(heads)
	s.tape.heads = s.tape.heads[:0]
	return err
}

// rest adds what stands behind the end of the archive.
func (s *splitter) rest() error {
	p := make([]byte, readSize)
	for {
		n, err := s.tape.r.Read(p)
		if err := s.tail(p[:n]); err != nil {
			return err
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("tar after its end: %w", err)
		}
	}
}

// tail adds bytes that are not contents, in as many members as they need.
func (s *splitter) tail(p []byte) error {
	for len(p) > 0 {
		if s.cur == nil || len(s.cur.tar) == cap(s.cur.tar) {
			s.closeMember()
			if err := s.nextBatch(0); err != nil {
				return err
			}
		}
		if !s.open {
			s.openMember()
		}
		b := s.cur
		n := min(len(p), cap(b.tar)-len(b.tar))
		b.tar = append(b.tar, p[:n]...)
		b.members[len(b.members)-1].end = len(b.tar)
		p = p[n:]
	}
	return nil
}

func (s *splitter) openMember() {
	at := len(s.cur.tar)
	s.cur.members = append(s.cur.members, member{start: at, end: at, tail: at})
	s.open, s.shared = true, 0
}

func (s *splitter) closeMember() { s.open = false }

func (s *splitter) nextBatch(n int) error {
	if s.cur != nil {
		s.submit(s.cur)
		s.cur = nil
	}
	b, err := s.next(n)
	if err != nil {
		return err
	}
	s.cur = b
	return nil
}
