package store

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
)

// maxTwins bounds the search among the chunks of one digest. Layers with more
// of them are made to be searched for long.
const maxTwins = 1 << 12

// A twin is a chunk with the same contents, of any layer.
type twin struct {
	layer *Layer
	chunk uint32
}

// twinOf finds one that is on disk; one that is verified if there is.
func (l *Layer) twinOf(c uint32) (found twin, ok bool) {
	k := l.index.chunk(c)
	for _, other := range l.store.open() {
		for t := range other.index.withDigest(&k.Digest) {
			if other == l && t == c || other.index.chunk(t).Size != k.Size {
				continue
			}
			if other.present.has(t) {
				return twin{other, t}, true
			}
			if other.present.claimed(t) {
				found, ok = twin{other, t}, true
			}
		}
	}
	return found, ok
}

// withDigest are the chunks with a digest.
func (x *index) withDigest(digest *[32]byte) func(yield func(uint32) bool) {
	return func(yield func(uint32) bool) {
		defer runtime.KeepAlive(x)
		prefix := prefixOf(digest)
		i, _ := slices.BinarySearch(x.prefixes, prefix)
		for n := 0; n < maxTwins && i < len(x.prefixes) && x.prefixes[i] == prefix; i, n = i+1, n+1 {
			c := x.sorted[i]
			if bytes.Equal(x.chunks[c].Digest[:], digest[:]) && !yield(c) {
				return
			}
		}
	}
}

// local gets a chunk from this machine, if it is on it: from the layer itself,
// where it was in an earlier boot, or from a twin.
func (l *Layer) local(c uint32) (bool, error) {
	if ok, err := l.reclaim(c); ok || err != nil {
		return ok, err
	}
	t, ok := l.twinOf(c)
	if !ok {
		return false, nil
	}
	return l.copyOf(t, c)
}

// reclaim verifies a chunk of an earlier boot. One that is not as it was is
// forgotten.
func (l *Layer) reclaim(c uint32) (bool, error) {
	if !l.present.claimed(c) {
		return false, nil
	}
	if !l.verify(c) {
		return false, l.present.disclaim(c)
	}
	return true, l.mark(c)
}

// copyOf copies a twin, and verifies what it copies. One that cannot be read is no
// help. One of an earlier boot is not marked: its own layer may be writing to it.
func (l *Layer) copyOf(t twin, c uint32) (bool, error) {
	k := t.layer.index.chunk(t.chunk)
	from, err := t.layer.place(k.Node, forReading)
	if err != nil {
		return false, nil
	}
	defer from.release()
	err = l.save(c, io.NewSectionReader(from, from.start+k.At, int64(k.Size)))
	if errors.Is(err, errCorrupt) {
		return false, nil
	}
	if err == nil {
		l.copied.Add(int64(k.Size))
	}
	return err == nil, err
}
