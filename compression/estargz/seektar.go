package estargz

import (
	"bufio"
	"fmt"
	"io"
	"sort"

	"github.com/klauspost/compress/gzip"
)

// startsApart is how much tar lies at least between two places that a seekTar
// starts from. It bounds what is decompressed in vain, and the memory for the
// places.
const startsApart = 64 << 10

// A seekTar is the tar of a blob, to be read from anywhere. Reading on is cheap,
// and elsewhere it starts from a member before. The order of a profile and that
// of a layer are much the same, so that few members are decompressed more than
// twice in another order, and the tar has to wait neither in memory nor on disk.
type seekTar struct {
	blob   *io.SectionReader // its members
	starts []tarStart

	// What is being read.
	in  counter
	buf *bufio.Reader // of in
	z   gzip.Reader
	pos int64 // in the tar
}

// A tarStart is where a member starts.
type tarStart struct{ blob, tar int64 }

// orderedTar returns the tar of the blob in another order.
func (r *Reader) orderedTar(order []string) (io.Reader, error) {
	t := &seekTar{
		blob:   io.NewSectionReader(r.blob, 0, r.payload),
		starts: []tarStart{{}},
		buf:    bufio.NewReader(nil),
	}
	parts, err := t.scan()
	if err != nil {
		return nil, fmt.Errorf("estargz: %w", err)
	}
	return parts.ordered(t, order), nil
}

// scan reads all of the tar, to find its parts and the places to start from.
func (t *seekTar) scan() (*parts, error) {
	if err := t.start(t.starts[0]); err != nil {
		return nil, noEOF(err)
	}
	parts, err := scanTar(t)
	if err != nil {
		return nil, err
	}
	// What stands behind the end of the archive is verified as well.
	_, err = io.Copy(io.Discard, t)
	return parts, err
}

// start has Read go on from there.
func (t *seekTar) start(at tarStart) error {
	t.in = counter{r: io.NewSectionReader(t.blob, at.blob, t.blob.Size()-at.blob), n: at.blob}
	t.buf.Reset(&t.in)
	t.pos = at.tar
	return t.member()
}

// member begins a member, or returns io.EOF when there is none.
func (t *seekTar) member() error {
	if err := t.z.Reset(t.buf); err != nil {
		return err
	}
	t.z.Multistream(false)
	return nil
}

// Read reads on, from one member to the next.
func (t *seekTar) Read(p []byte) (int, error) {
	for {
		n, err := t.z.Read(p)
		t.pos += int64(n)
		if n > 0 && err == io.EOF {
			err = nil // of the member, and returned again
		}
		if n > 0 || err != io.EOF {
			return n, err
		}
		at := tarStart{blob: t.in.n - int64(t.buf.Buffered()), tar: t.pos}
		if err := t.member(); err != nil {
			return 0, err
		}
		if at.tar >= t.starts[len(t.starts)-1].tar+startsApart {
			t.starts = append(t.starts, at)
		}
	}
}

// ReadAt is for one goroutine, and reads best where the last read ended.
func (t *seekTar) ReadAt(p []byte, off int64) (int, error) {
	next := sort.Search(len(t.starts), func(i int) bool { return t.starts[i].tar > off })
	if at := t.starts[next-1]; t.pos > off || t.pos < at.tar {
		if err := t.start(at); err != nil {
			return 0, noEOF(err)
		}
	}
	if _, err := io.CopyN(io.Discard, t, off-t.pos); err != nil {
		return 0, noEOF(err)
	}
	n, err := io.ReadFull(t, p)
	return n, noEOF(err)
}
