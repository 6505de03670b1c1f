package estargz

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// decodeTOC reads the JSON of a TOC entry by entry, so that neither the JSON
// nor a hostile number of entries is ever in memory as a whole. An entry is
// each's until it returns.
func decodeTOC(r io.Reader, allowed *allowance, each func(*Entry) error) error {
	s := &scanner{r: r}
	if err := s.expect('{'); err != nil {
		return err
	}
	seen := false
	for first := true; ; first = false {
		more, err := s.more('}', first)
		if err != nil || !more {
			return err
		}
		key, err := s.key()
		if err != nil {
			return err
		}
		switch key {
		case "version":
			err = decodeVersion(s)
		case "entries":
			if seen {
				return errors.New("entries stand twice")
			}
			seen = true
			err = decodeEntries(s, allowed, each)
		default:
			var ignored json.RawMessage
			err = s.decode(&ignored)
		}
		if err != nil {
			return err
		}
	}
}

func decodeVersion(s *scanner) error {
	var version int
	if err := s.decode(&version); err != nil {
		return fmt.Errorf("version: %w", err)
	}
	if version != tocVersion {
		return fmt.Errorf("version %d is unknown, want %d", version, tocVersion)
	}
	return nil
}

func decodeEntries(s *scanner, allowed *allowance, each func(*Entry) error) error {
	c, err := s.peek()
	if err != nil {
		return err
	}
	if c != '[' {
		var list []struct{} // null is how Go writes an empty one
		if err := s.decode(&list); err != nil {
			return fmt.Errorf("entries: want a list: %w", err)
		}
		return nil
	}
	s.at++
	names := newOwnerNames()
	e := &Entry{}
	for n := 0; ; n++ {
		more, err := s.more(']', n == 0)
		if err != nil || !more {
			return err
		}
		if n == maxTOCEntries {
			return fmt.Errorf("more than %d entries", maxTOCEntries)
		}
		if err := s.entry(e); err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		err = allowed.take(e)
		if e.Type != TypeChunk {
			names.fill(e)
		}
		if err == nil {
			err = each(e)
		}
		if err != nil {
			return fmt.Errorf("entry %d (%.100q): %w", n, e.Name, err)
		}
	}
}

// entry decodes an entry. Nearly all are plain; whatever is special is left to
// encoding/json.
func (s *scanner) entry(e *Entry) error {
	if _, err := s.peek(); err != nil {
		return err
	}
	for {
		*e = Entry{}
		p := plain{p: s.p[s.at:]}
		p.entry(e)
		switch p.problem {
		case nil:
			s.at += p.at
			return nil
		case errSpecial:
			*e = Entry{}
			return s.specialEntry(e)
		}
		if err := s.fill(); err != nil {
			return err
		}
	}
}

func (s *scanner) specialEntry(e *Entry) (err error) {
	j := jsonEntry{Entry: e}
	if err := s.decode(&j); err != nil {
		return err
	}
	if j.ModTime != "" {
		e.ModTime, err = time.Parse(time.RFC3339, j.ModTime)
	}
	return err
}

// A scanner finds values in a stream of JSON. It holds the part of the stream
// that is being looked at.
type scanner struct {
	r  io.Reader
	p  []byte // of the stream
	at int    // where the next value is in it
}

// scanSize is how much of the stream is held, if a value does not need more.
const scanSize = 256 << 10

// errEntrySize is what reading an entry of more than maxTOCEntrySize ends with.
var errEntrySize = fmt.Errorf("an entry is larger than %d bytes", maxTOCEntrySize)

// fill reads on, twice as much as is held of a value that is not complete.
func (s *scanner) fill() error {
	held := s.p[s.at:]
	if len(held) >= maxTOCEntrySize {
		return errEntrySize
	}
	size := min(max(scanSize, 2*len(held)), maxTOCEntrySize)
	p := s.p[:0]
	if cap(p) < size {
		p = make([]byte, 0, size)
	}
	n := copy(p[:size], held)
	more, err := io.ReadFull(s.r, p[n:size])
	s.p, s.at = p[:n+more], 0
	if more > 0 {
		return nil
	}
	return noEOF(err)
}

// peek passes over white space and returns what follows.
func (s *scanner) peek() (byte, error) {
	for {
		for ; s.at < len(s.p); s.at++ {
			if c := s.p[s.at]; !isSpace(c) {
				return c, nil
			}
		}
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

func (s *scanner) expect(want byte) error {
	c, err := s.peek()
	if err != nil {
		return err
	}
	if c != want {
		return fmt.Errorf("invalid character %q, want %c", c, want)
	}
	s.at++
	return nil
}

// more says whether another element follows in an object or a list that ends
// with that character.
func (s *scanner) more(end byte, first bool) (bool, error) {
	c, err := s.peek()
	if err != nil {
		return false, err
	}
	if c == end {
		s.at++
		return false, nil
	}
	if first {
		return true, nil
	}
	return true, s.expect(',')
}

func (s *scanner) key() (key string, err error) {
	c, err := s.peek()
	if err == nil && c != '"' {
		err = fmt.Errorf("invalid character %q, want a key", c)
	}
	if err == nil {
		err = s.decode(&key)
	}
	if err == nil {
		err = s.expect(':')
	}
	return key, err
}

// decode decodes the next value.
func (s *scanner) decode(to any) error {
	if _, err := s.peek(); err != nil {
		return err
	}
	for {
		if n := valueSize(s.p[s.at:]); n > 0 {
			p := s.p[s.at:][:n]
			s.at += n
			return json.Unmarshal(p, to)
		}
		if err := s.fill(); err != nil {
			return err
		}
	}
}

// valueSize returns how long the value is that p starts with, zero if it goes
// on behind p. Of what is no JSON it returns a part that is none.
func valueSize(p []byte) int {
	depth, quoted := 0, false
	for i := 0; i < len(p); i++ {
		switch c := p[i]; {
		case quoted && c == '\\':
			i++
		case quoted && c == '"':
			if quoted = false; depth == 0 {
				return i + 1
			}
		case quoted:
		case c == '"':
			quoted = true
		case c == '{' || c == '[':
			depth++
		case depth == 0 && (c == ',' || c == ':' || c == '}' || c == ']' || isSpace(c)):
			return max(i, 1)
		case c == '}' || c == ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 0
}
