package estargz

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sort"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
)

// members are the gzip members of a blob, with the headers in them. The
// contents stay where they are.
type members struct {
	all []*oldMember
	at  map[int64]*oldMember // by offset

	room  *room      // for heads
	large sync.Mutex // held while many of them are decompressed
	work  *work
}

// An oldMember is a member of a blob that is there, or several of which only
// the first has contents.
type oldMember struct {
	blob       io.ReaderAt
	start, end int64 // in the blob
	contents   int64 // bytes, padding included
	tar        int64 // where they start in the tar
	heads      []byte
	sum        uint32 // CRC-32 of both

	// cut is where the deflate stream of the contents ends, counted from
	// start; zero when it cannot be cut. final says that nothing can follow.
	cut   int
	final bool

	kept bool // its contents are in the new blob
}

// members finds the members and reads their headers. They are not reusable
// when files share one, or chunks or what stands between contents are larger
// than what is held in memory.
func (r *Reader) members(ctx context.Context) (*members, bool, error) {
	ms := &members{at: map[int64]*oldMember{}, work: &r.work, room: newRoom(maxAllHeads(r.size), errManyHeads)}
	first := &oldMember{blob: r.blob, end: r.payload}
	ms.all = append(ms.all, first)
	var left int64 // of the file, behind the chunk
	for _, e := range r.entries {
		if !e.HasContents() {
			continue
		}
		if e.Type == TypeReg {
			left = e.Size
		}
		left -= e.ChunkSize
		if e.InnerOffset > 0 || ms.at[e.Offset] != nil || e.ChunkSize > MaxChunkSize {
			return nil, false, nil
		}
		m := &oldMember{blob: r.blob, start: e.Offset, end: e.memberEnd, contents: e.ChunkSize}
		if left == 0 {
			m.contents += -(e.ChunkOffset + e.ChunkSize) & (blockSize - 1)
		}
		ms.all[len(ms.all)-1].end = e.Offset
		ms.all = append(ms.all, m)
		ms.at[e.Offset] = m
	}
	for _, m := range ms.all {
		if m.end-m.start > maxDeflated(m.contents)+maxExtra {
			return nil, false, nil
		}
	}
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(4)
	for _, m := range ms.all {
		eg.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := m.readHeads(ctx, ms); err != nil {
				return fmt.Errorf("estargz: member at %d: %w", m.start, err)
			}
			return nil
		})
	}
	err := eg.Wait()
	if errors.Is(err, errManyHeads) {
		return nil, false, nil
	}
	return ms, true, err
}

// heads returns how many bytes of headers are kept.
func (ms *members) heads() (n int64) {
	for _, m := range ms.all {
		n += int64(len(m.heads))
	}
	return n
}

func (ms *members) largest() int64 {
	largest := int64(DefaultChunkSize)
	for _, m := range ms.all {
		largest = max(largest, m.contents)
	}
	return min(largest, MaxChunkSize)
}

func (m *oldMember) readHeads(ctx context.Context, ms *members) error {
	if m.start == m.end {
		return nil // a tar that begins with contents there is not
	}
	p := make([]byte, m.end-m.start)
	if _, err := m.blob.ReadAt(p, m.start); err != nil {
		return noEOF(err)
	}
	if len(p) < gzipHeaderSize+gzipTrailerSize {
		return io.ErrUnexpectedEOF
	}
	trailer := p[len(p)-gzipTrailerSize:]
	m.sum = binary.LittleEndian.Uint32(trailer)
	size := int64(binary.LittleEndian.Uint32(trailer[4:]))
	if bytes.Equal(p[:gzipHeaderSize], gzipHeader[:]) && m.contents > 0 && size >= m.contents {
		if m.findCut(p, size-m.contents, ms) {
			return nil
		}
	}
	return m.inflate(ctx, p, ms)
}

// syncMarker ends a deflate stream at a byte without ending the member.
var syncMarker = []byte{0, 0, 0xff, 0xff}

const (
	// maxMarkers is how many bytes that look like the boundary are tried. That
	// of an ordinary member is the last one, or stands before one that ends the
	// member.
	maxMarkers = 8

	// What is decompressed to try them is at most cutRatio times the size of
	// the member, and minCutSize more. Headers compress by less.
	cutRatio   = 16
	minCutSize = 64 << 10
)

// findCut finds the boundary behind the contents in a member, with heads of that
// size behind it. Bytes that look like one and are not do not decompress to the
// right size; and the checksum is yet to be verified. A member that takes too
// long to search has none: its contents are compressed again.
func (m *oldMember) findCut(member []byte, heads int64, ms *members) (found bool) {
	p := member[:len(member)-gzipTrailerSize]
	if heads > maxHeads || bytes.Contains(p[1:], gzipHeader[:]) {
		return false // several members, and the size is of the last
	}
	short := func(cut int) bool { return int64(cut) <= maxDeflated(m.contents) }
	if heads == 0 && short(len(p)) {
		m.cut, m.final = len(p), true
		return true
	}
	left := cutRatio*int64(len(p)) + minCutSize
	if left < heads || !ms.room.take(heads) {
		return false
	}
	defer func() {
		if !found {
			ms.room.left.Add(heads)
		}
	}()
	out, end := make([]byte, heads), len(p)
	for range maxMarkers {
		i := bytes.LastIndex(p[:end], syncMarker)
		if i < gzipHeaderSize || left < heads {
			return false
		}
		cut := i + len(syncMarker)
		n, ok := inflateHeads(member[cut:], out)
		ms.work.inflated.Add(int64(n))
		if ok && short(cut) {
			m.cut, m.heads = cut, out
			return true
		}
		left -= int64(n)
		end = cut - 1
	}
	return false
}

// inflateHeads decompresses p into out, and says whether all of it but a gzip
// trailer is a stream of as many bytes.
//
// The trailer has to be there. The decompressor takes some streams for whole
// that lack a few bits at the end of its input.
func inflateHeads(p, out []byte) (n int, ok bool) {
	r := bytes.NewReader(p)
	z := getInflater(r)
	defer inflaters.Put(z)
	if n, err := io.ReadFull(z, out); err != nil {
		return n, false
	}
	more, err := io.ReadFull(z, make([]byte, 1))
	return len(out) + more, err == io.EOF && r.Len() == gzipTrailerSize
}

// errManyHeads is no error of the blob: a file that a later one replaces is in
// no TOC, and its contents are taken for headers.
var errManyHeads = errors.New("too many bytes behind the contents")

// inflate decompresses all to get at the headers. There may be several gzip
// members.
func (m *oldMember) inflate(ctx context.Context, p []byte, ms *members) error {
	z, err := gzip.NewReader(&stoppable{r: bytes.NewReader(p), stopped: ctx.Err})
	if err != nil {
		return err
	}
	sum := crc32.NewIEEE()
	if _, err := io.CopyN(sum, z, m.contents); err != nil {
		return noEOF(err)
	}
	var heads bytes.Buffer
	to := io.MultiWriter(ms.room, &heads, sum)
	const few = 256 << 10
	n, err := io.CopyN(to, z, few)
	if err == nil {
		// The buffer takes thrice as much while it grows: one at a time does.
		ms.large.Lock()
		defer ms.large.Unlock()
		var more int64
		more, err = io.CopyN(to, z, maxHeads+1-few)
		n += more
	}
	ms.work.inflated.Add(m.contents + n)
	switch {
	case err == nil:
		return errManyHeads
	case err != io.EOF:
		return err
	}
	m.heads, m.sum = bytes.Clone(heads.Bytes()), sum.Sum32()
	return nil
}

// inflaters are decompressors to be used again: one has 40 KiB, and most
// members are smaller.
var inflaters = sync.Pool{New: func() any { return flate.NewReader(bytes.NewReader(nil)) }}

func getInflater(r *bytes.Reader) io.Reader {
	z := inflaters.Get().(io.Reader)
	if err := z.(flate.Resetter).Reset(r, nil); err != nil {
		panic(err) // it has nothing to close
	}
	return z
}

// headers is the tar with zeros for contents, until ctx ends.
func (ms *members) headers(ctx context.Context) *io.SectionReader {
	h := &headers{stopped: ctx.Err}
	for _, m := range ms.all {
		m.tar = h.size
		h.starts = append(h.starts, h.size)
		h.size += m.contents + int64(len(m.heads))
	}
	h.members = ms.all
	return io.NewSectionReader(h, 0, h.size)
}

type headers struct {
	members []*oldMember
	starts  []int64 // of each member in the tar
	size    int64
	stopped func() error
}

func (h *headers) ReadAt(p []byte, off int64) (int, error) {
	if err := h.stopped(); err != nil {
		return 0, err
	}
	n := 0
	for n < len(p) {
		at := off + int64(n)
		if at >= h.size {
			return n, io.EOF
		}
		next := sort.Search(len(h.starts), func(i int) bool { return h.starts[i] > at })
		m := h.members[next-1]
		at -= h.starts[next-1]
		if at < m.contents {
			zeros := min(len(p)-n, int(m.contents-at))
			clear(p[n:][:zeros])
			n += zeros
			continue
		}
		n += copy(p[n:], m.heads[at-m.contents:])
	}
	return n, nil
}
