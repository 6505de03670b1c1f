package estargz

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
)

const (
	// DefaultLevel is the level of a writer that was given none.
	DefaultLevel = 6

	// NoCompression stores.
	NoCompression = -1

	maxLevel = 9
)

// headsLevel is the codec's level for headers. Better levels gain nothing on
// them, and clear large tables before each.
const headsLevel = 5

// A codec lends compressors of one level. To make one costs more than to
// compress a small file with it.
type codec struct {
	level int
	free  sync.Pool
}

// A compressor makes gzip members.
type compressor struct {
	contents, heads *flate.Writer
}

func (p *Pool) codec(level int) (*codec, error) {
	switch {
	case level == NoCompression:
		return &p.codecs[0], nil
	case level == 0:
		return &p.codecs[DefaultLevel], nil
	case level < 0 || level >= len(p.codecs):
		return nil, fmt.Errorf("compression level %d: want 1 to %d", level, len(p.codecs)-1)
	}
	return &p.codecs[level], nil
}

func (c *codec) get() *compressor {
	if z, ok := c.free.Get().(*compressor); ok {
		return z
	}
	return &compressor{
		contents: newWriter(c.level),
		heads:    newWriter(min(c.level, headsLevel)),
	}
}

func newWriter(level int) *flate.Writer {
	w, err := flate.NewWriter(nil, level)
	if err != nil {
		panic(err) // it was checked
	}
	return w
}

func (c *codec) put(z *compressor) { c.free.Put(z) }

// compress turns every member of the batch into a gzip member.
func (c *codec) compress(b *batch) error {
	z := c.get()
	defer c.put(z)
	out := bytes.NewBuffer(b.blob[:0])
	for i := range b.members {
		m := &b.members[i]
		before := out.Len()
		if err := z.member(out, b.tar, m); err != nil {
			return err
		}
		m.size = out.Len() - before
	}
	b.blob = out.Bytes()
	return nil
}

// gzipHeader has no name, no time and no system, so that it says nothing of
// where it was made.
var gzipHeader = [gzipHeaderSize]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}

// member writes a gzip member of contents and the heads behind them. Where
// there are both, each is a deflate stream of its own and the first one ends at
// a byte without ending the member: other heads can be put in the place of
// these while the contents stay compressed.
func (z *compressor) member(out *bytes.Buffer, tar []byte, m *member) error {
	contents, heads := tar[m.start:m.tail], tar[m.tail:m.end]
	if m.final && len(heads) > 0 {
		// Nothing can follow in this member.
		if err := z.streams(out, contents, nil, m.deflated, true); err != nil {
			return err
		}
		return z.streams(out, nil, heads, nil, false)
	}
	return z.streams(out, contents, heads, m.deflated, m.final)
}

// emptyFinalBlock ends a deflate stream that is at a byte.
var emptyFinalBlock = []byte{3, 0}

func (z *compressor) streams(out *bytes.Buffer, contents, heads, deflated []byte, final bool) error {
	out.Write(gzipHeader[:])
	switch {
	case deflated != nil:
		out.Write(deflated)
		if !final && len(heads) == 0 {
			out.Write(emptyFinalBlock)
		}
	case len(contents) > 0:
		end := z.contents.Close
		if len(heads) > 0 {
			end = z.contents.Flush
		}
		if err := deflate(z.contents, out, contents, end); err != nil {
			return err
		}
	}
	if len(heads) > 0 || len(contents) == 0 {
		if err := deflate(z.heads, out, heads, z.heads.Close); err != nil {
			return err
		}
	}
	sum := crc32.Update(crc32.ChecksumIEEE(contents), crc32.IEEETable, heads)
	p := binary.LittleEndian.AppendUint32(out.AvailableBuffer(), sum)
	p = binary.LittleEndian.AppendUint32(p, uint32(len(contents)+len(heads)))
	out.Write(p)
	return nil
}

// A stream is a gzip member of contents that are written to it.
type stream struct {
	z    *flate.Writer
	out  io.Writer
	sum  uint32
	size uint32
}

// open begins a member. It is to be closed before the compressor makes another.
func (z *compressor) open(out io.Writer) (*stream, error) {
	z.contents.Reset(out)
	_, err := out.Write(gzipHeader[:])
	return &stream{z: z.contents, out: out}, err
}

func (s *stream) Write(p []byte) (int, error) {
	s.sum = crc32.Update(s.sum, crc32.IEEETable, p)
	s.size += uint32(len(p))
	return s.z.Write(p)
}

func (s *stream) Close() error {
	if err := s.z.Close(); err != nil {
		return err
	}
	p := binary.LittleEndian.AppendUint32(nil, s.sum)
	_, err := s.out.Write(binary.LittleEndian.AppendUint32(p, s.size))
	return err
}

func deflate(w *flate.Writer, out *bytes.Buffer, p []byte, end func() error) error {
	w.Reset(out)
	if _, err := w.Write(p); err != nil {
		return err
	}
	return end()
}
