package estargz

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	tocVersion = 1

	// A TOC of a million files is about 400 MB of indented JSON. What is
	// larger than this is refused before it eats the memory.
	maxTOCSize    = 1 << 30
	maxTOCEntries = 1 << 22

	// One entry is a path, a link target and xattrs. A decoder buffers it
	// whole, so that it must not be the whole TOC.
	maxTOCEntrySize = 16 << 20
)

// errEntrySize is what reading an entry of more than maxTOCEntrySize ends with.
var errEntrySize = fmt.Errorf("an entry is larger than %d bytes", maxTOCEntrySize)

// entryReader ends with errEntrySize when more is asked for than one entry may
// have.
type entryReader struct {
	r    io.Reader
	left int
}

func (r *entryReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, errEntrySize
	}
	n, err := r.r.Read(p[:min(len(p), r.left)])
	r.left -= n
	return n, err
}

// jsonEntry adds what the JSON spells differently.
type jsonEntry struct {
	*Entry
	ModTime string `json:"modtime,omitempty"`
}

// ownerNames elides an owner's name that the entry before said already, as the
// format allows, and fills it in again.
type ownerNames struct{ users, groups map[int]string }

func newOwnerNames() ownerNames {
	return ownerNames{users: map[int]string{}, groups: map[int]string{}}
}

func (o ownerNames) elide(e *Entry) (user, group string) {
	return unlessKnown(o.users, e.UID, e.Uname), unlessKnown(o.groups, e.GID, e.Gname)
}

func unlessKnown(known map[int]string, id int, name string) string {
	if known[id] == name {
		return ""
	}
	known[id] = name
	return name
}

func (o ownerNames) fill(e *Entry) {
	e.Uname = known(o.users, e.UID, e.Uname)
	e.Gname = known(o.groups, e.GID, e.Gname)
}

func known(names map[int]string, id int, name string) string {
	if name == "" {
		return names[id]
	}
	names[id] = name
	return name
}

// encodeTOC writes the entries as the JSON of a TOC, one to a line: small, and
// still readable.
func encodeTOC(entries []*Entry) ([]byte, error) {
	p := fmt.Appendf(nil, "{\"version\":%d,\"entries\":[", tocVersion)
	names := newOwnerNames()
	for i, e := range entries {
		if i > 0 {
			p = append(p, ',')
		}
		line := *e
		if e.Type != TypeChunk {
			line.Uname, line.Gname = names.elide(e)
		}
		b, err := json.Marshal(jsonEntry{Entry: &line, ModTime: formatTime(e.ModTime)})
		if err != nil {
			return nil, fmt.Errorf("TOC entry %q: %w", e.Name, err)
		}
		p = append(append(p, '\n'), b...)
	}
	return append(p, "\n]}\n"...), nil
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// decodeTOC reads the JSON of a TOC entry by entry, so that neither the JSON
// nor a hostile number of entries is ever in memory as a whole.
func decodeTOC(r io.Reader, each func(*Entry) error) error {
	limited := &entryReader{r: r, left: maxTOCEntrySize}
	d := json.NewDecoder(limited)
	if err := expect(d, json.Delim('{')); err != nil {
		return err
	}
	seen := false
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		switch key {
		case "version":
			err = decodeVersion(d)
		case "entries":
			if seen {
				return errors.New("entries stand twice")
			}
			seen = true
			err = decodeEntries(d, func(e *Entry) error {
				limited.left = maxTOCEntrySize
				return each(e)
			})
		default:
			var ignored json.RawMessage
			err = d.Decode(&ignored)
		}
		if err != nil {
			return err
		}
	}
	return expect(d, json.Delim('}'))
}

func decodeVersion(d *json.Decoder) error {
	var version int
	if err := d.Decode(&version); err != nil {
		return fmt.Errorf("version: %w", err)
	}
	if version != tocVersion {
		return fmt.Errorf("version %d is unknown, want %d", version, tocVersion)
	}
	return nil
}

func decodeEntries(d *json.Decoder, each func(*Entry) error) error {
	t, err := d.Token()
	if err != nil || t == nil { // null is how Go writes an empty list
		return err
	}
	if t != json.Delim('[') {
		return fmt.Errorf("entries: found %v, want a list", t)
	}
	names := newOwnerNames()
	for n := 0; d.More(); n++ {
		if n == maxTOCEntries {
			return fmt.Errorf("more than %d entries", maxTOCEntries)
		}
		e := &Entry{}
		j := jsonEntry{Entry: e}
		if err := d.Decode(&j); err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		if j.ModTime != "" {
			if e.ModTime, err = time.Parse(time.RFC3339, j.ModTime); err != nil {
				return fmt.Errorf("entry %d (%q): %w", n, e.Name, err)
			}
		}
		if e.Type != TypeChunk {
			names.fill(e)
		}
		if err := each(e); err != nil {
			return fmt.Errorf("entry %d (%q): %w", n, e.Name, err)
		}
	}
	return expect(d, json.Delim(']'))
}

func expect(d *json.Decoder, want json.Delim) error {
	t, err := d.Token()
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if t != want {
		return fmt.Errorf("found %v, want %v", t, want)
	}
	return nil
}
