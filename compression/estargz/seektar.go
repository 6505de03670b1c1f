package estargz

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sort"

	"github.com/klauspost/compress/gzip"
)

// startsApart is how much tar lies at least between two places that a seekTar
// starts from. It bounds what is decompressed in vain, and the memory for the
// places.
const startsApart = 64 << 10

// maxSeeks is how many times the size of the tar is decompressed at most to
// read the prioritized files in their order. It takes less time than to compress
// the tar once.
const maxSeeks = 4

// A seekTar is the tar of a blob, to be read from anywhere. Reading on is cheap,
// and elsewhere it starts from a member before. The order of a profile and that
// of a layer are much the same, so that few members are decompressed more than
// twice in another order, and the tar has to wait neither in memory nor on disk.
type seekTar struct {
	blob    *io.SectionReader // its members
	stopped func() error      // ends reads
	work    *work
	starts  []tarStart

	// What is being read.
	in  counter
	buf *bufio.Reader // of in
	z   gzip.Reader
	pos int64 // in the tar
	end int64 // the tar is refused where it goes on behind it
}

// A tarStart is where a member starts.
type tarStart struct{ blob, tar int64 }

// orderedTar returns the tar of the blob in another order, until ctx ends. Where
// prioritized files lie so far behind the starts of their members that each
// would have the same bytes decompressed again, they stand in the order of the
// tar: the members are read once.
func (r *Reader) orderedTar(ctx context.Context, order []string, room *room) (io.Reader, error) {
	t := &seekTar{
		blob:    io.NewSectionReader(r.blob, 0, r.payload),
		stopped: ctx.Err,
		work:    &r.work,
		starts:  []tarStart{{}},
		buf:     bufio.NewReader(nil),
	}
	var named int64
	for _, e := range r.entries {
		if named += textOf(e) + maxHeadersOf; e.HasContents() {
			named = min(named+e.ChunkSize, r.payload*deflateRatio) // they may claim the same bytes
		}
	}
	t.end = named + maxHidden(named)
	listed := r.listed()
	parts, err := t.scan(listed, room)
	if err == nil {
		err = parts.compare(listed)
	}
	if err != nil {
		return nil, fmt.Errorf("estargz: %w", err)
	}
	size := t.pos
	first, landmark, rest := parts.inOrder(order)
	if t.cost(first) > maxSeeks*size {
		slices.SortFunc(first, func(a, b *part) int { return cmp.Compare(a.start, b.start) })
	}
	return orderedTar(t, first, landmark, rest), nil
}

// cost returns how many bytes are decompressed to read the parts.
func (t *seekTar) cost(parts []*part) (n int64) {
	pos := t.pos
	for _, f := range parts {
		if at := t.startBefore(f.start); pos > f.start || pos < at.tar {
			pos = at.tar
		}
		n += f.end - pos
		pos = f.end
	}
	return n
}

// scan reads all of the tar, to find its parts and the places to start from.
func (t *seekTar) scan(listed map[string]*Entry, room *room) (*parts, error) {
	if err := t.start(t.starts[0]); err != nil {
		return nil, noEOF(err)
	}
	parts, err := scanTar(t, listed, t.work, room)
	if err != nil {
		return nil, err
	}
	// What stands behind the end of the archive is verified as well.
	_, err = io.Copy(io.Discard, t)
	return parts, err
}

// start has Read go on from there.
func (t *seekTar) start(at tarStart) error {
	members := io.NewSectionReader(t.blob, at.blob, t.blob.Size()-at.blob)
	t.in = counter{r: &stoppable{members, t.stopped}, n: at.blob}
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
		t.work.inflated.Add(int64(n))
		if t.pos > t.end {
			return 0, fmt.Errorf("member before %d: the tar goes on behind byte %d, with far more than its TOC names", t.in.n, t.end)
		}
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

// startBefore returns the last place to start from in front of an offset.
func (t *seekTar) startBefore(off int64) tarStart {
	next := sort.Search(len(t.starts), func(i int) bool { return t.starts[i].tar > off })
	return t.starts[next-1]
}

// ReadAt is for one goroutine, and reads best where the last read ended.
func (t *seekTar) ReadAt(p []byte, off int64) (int, error) {
	if at := t.startBefore(off); t.pos > off || t.pos < at.tar {
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
