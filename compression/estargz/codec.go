package estargz

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/klauspost/compress/gzip"
)

const (
	// DefaultLevel is the level of a writer that was given none.
	DefaultLevel = 6

	// NoCompression stores.
	NoCompression = -1
)

// codecLevels maps gzip's levels to those of the codec, which reaches zlib's
// size at level 6 one level higher, still several times faster.
var codecLevels = [...]int{0, 1, 2, 3, 4, 5, 7, 7, 8, 9}

// A codec lends compressors of one level. To make one costs more than to
// compress a small file with it.
type codec struct {
	level   int
	writers sync.Pool
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

func (c *codec) get() *gzip.Writer {
	if w, ok := c.writers.Get().(*gzip.Writer); ok {
		return w
	}
	w, err := gzip.NewWriterLevel(nil, c.level)
	if err != nil {
		panic(err) // the level is one of codecLevels
	}
	return w
}

// compress turns every member of the batch into a gzip member.
func (c *codec) compress(b *batch) error {
	w := c.get()
	defer c.writers.Put(w)

	out := bytes.NewBuffer(b.blob[:0])
	for i := range b.members {
		m := &b.members[i]
		before := out.Len()
		w.Reset(out)
		if err := writeMember(w, b.tar, m); err != nil {
			return err
		}
		m.size = out.Len() - before
	}
	b.blob = out.Bytes()
	return nil
}

func writeMember(w *gzip.Writer, tar []byte, m *member) error {
	if m.start < m.tail && m.tail < m.end {
		if _, err := w.Write(tar[m.start:m.tail]); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if _, err := w.Write(tar[m.tail:m.end]); err != nil {
			return err
		}
		return w.Close()
	}
	if _, err := w.Write(tar[m.start:m.end]); err != nil {
		return err
	}
	return w.Close()
}
