package estargz

import (
	"bytes"
	"encoding/json"
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
	// whole, so that it must not be the whole TOC. Readers of tars take 1 MiB
	// of headers for a file.
	maxTOCEntrySize = 4 << 20
)

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
	if name == "" || known[id] == name {
		return "" // no name is none to a reader where there was one before
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

const tocEnd = "\n]}"

// A tocJSON is the JSON of a TOC. It is in pieces, since to grow a slice takes
// twice its memory.
type tocJSON struct {
	pieces [][]byte
	size   int64
	room   *room // that it takes; nil for any
}

const pieceSize = 256 << 10

func (j *tocJSON) append(p []byte) error {
	j.size += int64(len(p))
	for {
		if last := len(j.pieces) - 1; last >= 0 {
			piece := j.pieces[last]
			n := copy(piece[len(piece):cap(piece)], p)
			j.pieces[last], p = piece[:len(piece)+n], p[n:]
		}
		if len(p) == 0 {
			return nil
		}
		if j.room != nil && !j.room.take(pieceSize) {
			return j.room.full
		}
		j.pieces = append(j.pieces, make([]byte, 0, pieceSize))
	}
}

func (j *tocJSON) reader() io.Reader {
	var all []io.Reader
	for _, p := range j.pieces {
		all = append(all, bytes.NewReader(p))
	}
	return io.MultiReader(all...)
}

// encodeTOC writes the entries as the JSON of a TOC, one to a line: small, and
// still readable. What a Reader refuses behind such a payload it does not write.
func encodeTOC(entries []*Entry, implied int, payload int64, room *room) (*tocJSON, error) {
	if len(entries) > maxTOCEntries {
		return nil, fmt.Errorf("a TOC of %d entries is larger than readers accept, %d; split the layer", len(entries), maxTOCEntries)
	}
	j := &tocJSON{room: room}
	if err := j.append(fmt.Appendf(nil, "{\"version\":%d,\"entries\":[", tocVersion)); err != nil {
		return nil, err
	}
	names := newOwnerNames()
	allowed := allowance{payload: payload, dense: true}
	for i, e := range entries {
		line := *e
		if e.Type != TypeChunk {
			line.Uname, line.Gname = names.elide(e)
		}
		if err := allowed.take(&line); err != nil {
			return nil, fmt.Errorf("TOC entry %.100q: %w; use compression=gzip", e.Name, err)
		}
		b, err := json.Marshal(jsonEntry{Entry: &line, ModTime: formatTime(e.ModTime)})
		if err != nil {
			return nil, fmt.Errorf("TOC entry %q: %w", e.Name, err)
		}
		if len(b) >= maxTOCEntrySize {
			return nil, fmt.Errorf("TOC entry %.100q: %d bytes are more than readers accept, %d; it has too many xattrs", e.Name, len(b), maxTOCEntrySize)
		}
		separator := ",\n"
		if i == 0 {
			separator = "\n"
		}
		if err := j.append(append([]byte(separator), b...)); err != nil {
			return nil, fmt.Errorf("TOC entry %.100q: %w", e.Name, err)
		}
		if most := maxTOC(payload); j.size+int64(len(tocEnd)) > most {
			return nil, fmt.Errorf("TOC entry %.100q: a TOC up to it is larger than readers accept, %d bytes for a layer of %d; split it, or use compression=gzip", e.Name, most, payload)
		}
	}
	if err := allowed.takeMemory(int64(implied) * impliedSize); err != nil {
		return nil, fmt.Errorf("TOC: with %d directories that have no entry of their own: %w; add them to the tar, or use compression=gzip", implied, err)
	}
	return j, j.append([]byte(tocEnd))
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}
