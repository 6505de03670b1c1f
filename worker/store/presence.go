package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
)

// presence is the record of the chunks that are here. Each is written before it
// is marked, and both lie in the page cache: killing the process loses no more
// than what was not marked yet. When the machine goes down the mark may reach
// the disk and the chunk not, so that marks count in the boot they were made
// in. Those of earlier boots are claims, to be verified first.
//
// In the file stand the ID of the boot, the claims and the marks.
type presence struct {
	file     *os.File
	claims   []atomic.Uint64
	verified []atomic.Uint64

	mu sync.Mutex // of those who write
}

// presenceHead is room for the boot's ID, a UUID and a newline.
const presenceHead = 64

func presenceSize(chunks int) (words int, size int64) {
	words = (chunks + 63) / 64
	return words, presenceHead + 2*8*int64(words)
}

// createPresence makes the file of a layer of which nothing is here. It is
// written, not sparse, so that the space for every mark is there.
func createPresence(name string, chunks int, bootID string) error {
	_, size := presenceSize(chunks)
	p := make([]byte, size)
	copy(p[:presenceHead], bootID)
	return os.WriteFile(name, p, 0o600)
}

func openPresence(name string, chunks int, bootID string) (*presence, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	words, size := presenceSize(chunks)
	p := make([]byte, size)
	// What a crash of the machine cut off says that nothing is here.
	if _, err := f.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, f.Close())
	}
	s := &presence{file: f, claims: make([]atomic.Uint64, words), verified: make([]atomic.Uint64, words)}
	head := make([]byte, presenceHead)
	copy(head, bootID)
	if string(p[:presenceHead]) != string(head) {
		if err := s.demote(p, head); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	for i := range words {
		s.claims[i].Store(binary.LittleEndian.Uint64(p[presenceHead+8*i:]))
		s.verified[i].Store(binary.LittleEndian.Uint64(p[presenceHead+8*(words+i):]))
	}
	return s, nil
}

// demote makes claims of the marks of another boot. Whoever is killed in the
// midst of it has lost nothing: the ID comes last.
func (s *presence) demote(p, head []byte) error {
	claims, verified := p[presenceHead:][:8*len(s.claims)], p[presenceHead+8*len(s.claims):]
	for i := range claims {
		claims[i] |= verified[i]
	}
	clear(verified)
	copy(p, head)
	for _, part := range []struct {
		p  []byte
		at int
	}{{claims, presenceHead}, {verified, presenceHead + len(claims)}, {head, 0}} {
		if _, err := s.file.WriteAt(part.p, int64(part.at)); err != nil {
			return fmt.Errorf("present: %w", err)
		}
	}
	return nil
}

// has says whether a chunk is here and was verified in this boot.
func (s *presence) has(c uint32) bool { return s.verified[c/64].Load()>>(c%64)&1 != 0 }

// claimed says whether a chunk was here in an earlier boot.
func (s *presence) claimed(c uint32) bool { return s.claims[c/64].Load()>>(c%64)&1 != 0 }

// mark records that a chunk is here and verified. If that is new, count is called
// once, before anybody can see it.
func (s *presence) mark(c uint32, count func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.has(c) {
		return nil
	}
	word := s.verified[c/64].Load() | 1<<(c%64)
	if err := s.write(len(s.claims)+int(c/64), word); err != nil {
		return err
	}
	count()
	s.verified[c/64].Store(word)
	return nil
}

// disclaim takes back that a chunk was here.
func (s *presence) disclaim(c uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	word := s.claims[c/64].Load() &^ (1 << (c % 64))
	if err := s.write(int(c/64), word); err != nil {
		return err
	}
	s.claims[c/64].Store(word)
	return nil
}

// write writes the i-th word of claims and marks to the file.
func (s *presence) write(i int, word uint64) error {
	var p [8]byte
	binary.LittleEndian.PutUint64(p[:], word)
	if _, err := s.file.WriteAt(p[:], presenceHead+8*int64(i)); err != nil {
		return fmt.Errorf("present: %w", err)
	}
	return nil
}
