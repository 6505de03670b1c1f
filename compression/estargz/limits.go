package estargz

import (
	"fmt"
	"strings"
	"sync/atomic"
)

// What a tar or a TOC says costs memory and time when it is read, and both are
// compressed up to a thousandfold. What follows bounds that by the size of the
// blob. A writer has the limits of a Reader that takes dense layers.

// maxBuilt leaves the landmark of another order a place among maxTOCEntries.
const maxBuilt = maxTOCEntries - 1

// maxMemory is how many bytes of memory the entries of a TOC may take behind a
// payload of so many bytes. An empty file of an ordinary layer has some 40 bytes of
// the payload, and takes entrySize of memory and its name: 9 for each byte. Names
// that count up compress to 7 bytes; the first part has room for 180,000 of them.
// A dense layer may have any number of these, with names of 140 bytes.
func maxMemory(payload int64, dense bool) int64 {
	payload = min(payload, 1<<50)
	ordinary := 56<<20 + 9*payload
	if dense {
		return max(ordinary, 64*payload)
	}
	return ordinary
}

// maxTOC is how large the JSON of a TOC may be. It takes time even where it says
// nothing. That of an ordinary entry has 100 bytes, or 500 in the indented form
// that others write.
func maxTOC(payload int64) int64 { return min(16<<20+48*min(payload, maxTOCSize), maxTOCSize) }

// maxElements is how many elements the paths of so many entries may have: each is
// looked up. Ordinary paths have fewer than 20 each.
func maxElements(entries int) int { return 1<<18 + 20*entries }

// What an entry takes in memory, measured.
const (
	entrySize   = 320 // with its place in the tree, and without what follows
	stringSize  = 16  // at least, besides its bytes
	xattrSize   = 96  // besides name and value
	ownerSize   = 64  // of a name that is remembered
	impliedSize = 48  // of a directory that has no entry
)

// An allowance counts what the entries of a TOC take.
type allowance struct {
	payload  int64
	dense    bool // see maxMemory
	entries  int
	elements int
	memory   int64
}

// take counts an entry as the JSON spells it. What follows from others takes
// nothing of its own.
func (a *allowance) take(e *Entry) error {
	a.entries++
	a.elements += 1 + strings.Count(e.Name, "/")
	if e.Type == TypeHardlink {
		a.elements += 1 + strings.Count(e.LinkName, "/")
	}
	if a.elements > maxElements(a.entries) {
		return fmt.Errorf("paths up to it have %d elements, more than %d for %d entries", a.elements, maxElements(a.entries), a.entries)
	}
	return a.takeMemory(memoryOf(e))
}

func (a *allowance) takeMemory(n int64) error {
	if a.memory += n; a.memory > maxMemory(a.payload, a.dense) {
		return fmt.Errorf("%d entries take more than %d bytes of memory, the limit for a layer of %d bytes", a.entries, maxMemory(a.payload, a.dense), a.payload)
	}
	return nil
}

func memoryOf(e *Entry) int64 {
	n := entrySize + textOf(e) + int64(len(e.Digest)+len(e.ChunkDigest))
	if e.ChunkDigest == e.Digest {
		n -= int64(len(e.Digest))
	}
	if e.LinkName != "" {
		n += stringSize
	}
	for _, name := range []string{e.Uname, e.Gname} {
		if name != "" {
			n += ownerSize
		}
	}
	return n + int64(len(e.Xattrs))*xattrSize
}

// A work counts what reading a blob took, for the tests of what hostile bytes cost.
type work struct {
	inflated atomic.Int64 // bytes, each time that they are
	entries  int          // of the tar
	lookups  int          // of names
}

// maxImplied is how many directories may have no entry of their own. One path can
// imply 2,000.
func maxImplied(entries int) int { return 1<<16 + 4*entries }

// maxReplaced is how many entries of a tar may have the name of a later one,
// beside so many names. They are in no TOC.
func maxReplaced(names int) int { return 1<<16 + names }

// maxText is how many bytes the names and xattrs of a tar may have, while the size
// of the blob is not known.
func maxText(entries int) int64 { return 32<<20 + 4<<10*int64(entries) }

func textOf(e *Entry) int64 {
	n := len(e.Name) + len(e.LinkName) + len(e.Uname) + len(e.Gname)
	for name, value := range e.Xattrs {
		n += len(name) + len(value)
	}
	return int64(n)
}

const (
	// maxHeads bounds the headers behind one file that are kept in memory.
	maxHeads = 8 << 20

	// maxExtra bounds what a member holds besides contents, compressed.
	maxExtra = 2 << 20
)

// maxOrderMemory is how many bytes of memory a blob of so many bytes may take while
// it is brought into another order. An empty file of an ordinary layer has 41 bytes
// of the blob, and takes 1,130: its entry of the TOC, its part of the tar, and its
// line of the new TOC.
func maxOrderMemory(blob int64) int64 { return 32<<20 + 28*min(blob, 1<<50) }

// maxAllHeads is how many of these may be headers that are kept for files with
// contents. A file has 512, or three times as many with xattrs, and 110 of the blob.
func maxAllHeads(blob int64) int64 { return 8<<20 + 12*min(blob, 1<<50) }

// What is taken while a layer is brought into another order.
const (
	partSize        = 640 // of a file of the tar, without its text and its xattrs
	impliedPartSize = 384 // of a directory that has no entry
)

// memoryOfPart counts a name twice: one that is not clean has a clean copy.
func memoryOfPart(e *Entry) int64 {
	return partSize + textOf(e) + int64(len(e.Name)+len(e.Xattrs)*xattrSize)
}

// A room is how much more memory may be taken. What is written to it takes as much.
type room struct {
	left atomic.Int64
	full error // of Write
}

func newRoom(size int64, full error) *room {
	r := &room{full: full}
	r.left.Store(size)
	return r
}

func (r *room) take(n int64) bool {
	if r.left.Add(-n) >= 0 {
		return true
	}
	r.left.Add(n)
	return false
}

func (r *room) Write(p []byte) (int, error) {
	if !r.take(int64(len(p))) {
		return 0, r.full
	}
	return len(p), nil
}

// roomToOrder is what is left for another order of an opened blob.
func (r *Reader) roomToOrder() *room {
	most := maxOrderMemory(r.size)
	return newRoom(most-r.allowance.memory, fmt.Errorf("another order takes more than %d bytes of memory, the limit for a layer of %d bytes", most, r.size))
}

// maxHeadersOf is what the headers of a file take, besides long names and xattrs.
const maxHeadersOf = 6 * blockSize

// maxHidden is how many bytes a tar may have that its TOC does not name, where it
// names so many: contents of files that later ones replace.
func maxHidden(named int64) int64 { return 128<<20 + 8*named }

// maxDeflated is how large contents of n bytes are at most as a deflate stream
// that is taken over. A stored block of 32 KiB has five bytes more; what is
// larger than this has empty blocks, and is compressed again.
func maxDeflated(n int64) int64 { return n + n/64 + 1<<10 }
