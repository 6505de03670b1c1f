package estargz

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"github.com/klauspost/compress/gzip"
	digest "github.com/opencontainers/go-digest"
)

// maxReadChunk bounds what reading one chunk allocates. Some writers make
// chunks larger than ours.
const maxReadChunk = 4 * MaxChunkSize

// ReadChunk returns the contents of a chunk, verified against the digest that
// the TOC has for it. A chunk without one is refused.
func (r *Reader) ReadChunk(c *Entry) ([]byte, error) {
	if !c.HasContents() {
		return nil, nil
	}
	p, err := r.readChunk(c)
	if err == nil {
		err = verify(p, c.contentDigest())
	}
	if err != nil {
		return nil, fmt.Errorf("estargz: %q from %d, member at %d of the blob: %w", c.Name, c.ChunkOffset, c.Offset, err)
	}
	return p, nil
}

// contentDigest is what the chunk must have. A file that is one chunk may have
// the digest of the file alone.
func (e *Entry) contentDigest() digest.Digest {
	if e.ChunkDigest == "" && e.ChunkSize == e.Size {
		return e.Digest
	}
	return e.ChunkDigest
}

func (r *Reader) readChunk(c *Entry) ([]byte, error) {
	if c.ChunkSize > maxReadChunk {
		return nil, fmt.Errorf("a chunk of %d bytes is more than the limit of %d", c.ChunkSize, maxReadChunk)
	}
	z, err := gzip.NewReader(io.NewSectionReader(r.blob, c.Offset, c.memberEnd-c.Offset))
	if err != nil {
		return nil, noEOF(err)
	}
	if _, err := io.CopyN(io.Discard, z, c.InnerOffset); err != nil {
		return nil, noEOF(err)
	}
	// The buffer grows with what is really there, not with what is claimed.
	var b bytes.Buffer
	if _, err := io.CopyN(&b, z, c.ChunkSize); err != nil {
		return nil, noEOF(err)
	}
	return b.Bytes(), nil
}

// noEOF keeps an early end from being taken for the end of a file.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// errNoDigest is why a chunk of stargz, which knows no digests, is refused.
var errNoDigest = errors.New("the TOC has no digest to verify it by")

func verify(p []byte, want digest.Digest) error {
	if want == "" {
		return errNoDigest
	}
	if got := want.Algorithm().FromBytes(p); got != want {
		return fmt.Errorf("the digest of the contents is %s, want %s", got, want)
	}
	return nil
}

// OpenFile returns the contents of a regular file. Every chunk is verified
// before a byte of it is handed out.
func (r *Reader) OpenFile(name string) (*io.SectionReader, error) {
	e, ok := r.Lookup(name)
	if !ok {
		return nil, fmt.Errorf("estargz: no file %q", name)
	}
	if e.Type != TypeReg {
		return nil, fmt.Errorf("estargz: %q is a %s, want a regular file", name, e.Type)
	}
	return io.NewSectionReader(&contents{r: r, chunks: r.Chunks(name)}, 0, e.Size), nil
}

// contents reads a file chunk by chunk, and keeps the last one for the read
// that goes on where this one ends.
type contents struct {
	r      *Reader
	chunks []*Entry

	mu   sync.Mutex
	last *Entry
	held []byte // its contents
}

func (c *contents) ReadAt(p []byte, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for n < len(p) {
		at := off + int64(n)
		i := sort.Search(len(c.chunks), func(i int) bool {
			return at < c.chunks[i].ChunkOffset+c.chunks[i].ChunkSize
		})
		if i == len(c.chunks) {
			return n, io.EOF
		}
		if err := c.hold(c.chunks[i]); err != nil {
			return n, err
		}
		n += copy(p[n:], c.held[at-c.last.ChunkOffset:])
	}
	return n, nil
}

func (c *contents) hold(e *Entry) (err error) {
	if c.last == e {
		return nil
	}
	c.last = nil
	if c.held, err = c.r.ReadChunk(e); err == nil {
		c.last = e
	}
	return err
}

// Unpack returns the tar that a blob of size bytes was written from, without
// the TOC.
func Unpack(blob io.ReaderAt, size int64) (io.ReadCloser, error) {
	f, err := readFooter(blob, size)
	if err != nil {
		return nil, fmt.Errorf("estargz: %w", err)
	}
	payload := f.tocOffset
	if f.external {
		payload = size - f.size
	}
	if payload == 0 {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	z, err := gzip.NewReader(io.NewSectionReader(blob, 0, payload))
	if err != nil {
		return nil, fmt.Errorf("estargz: %w", noEOF(err))
	}
	return z, nil
}
