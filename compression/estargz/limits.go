package estargz

import "fmt"

// What a tar or a TOC says costs memory when it is read. What follows bounds that
// by the number of entries, which ordinary layers of as many files need too. A
// writer has no wider limits than a Reader.

// maxBuilt leaves the landmark of another order a place among maxTOCEntries.
const maxBuilt = maxTOCEntries - 1

// maxEntries is how many entries a TOC may have behind a payload of so many bytes.
// The TOC itself compresses a thousandfold, and an entry takes hundreds of bytes of
// memory. In the payload each entry has a header of the tar, which takes 7 bytes at
// least: so do 100,000 empty files whose names count up, at level 9.
func maxEntries(payload int64) int { return int(min(1<<16+payload/3, maxTOCEntries)) }

func checkEntries(n int, payload int64) error {
	if most := maxEntries(payload); n > most {
		return fmt.Errorf("more than %d entries for a layer of %d bytes", most, payload)
	}
	return nil
}

// maxImplied is how many directories may have no entry of their own. One path can
// imply 2,000.
func maxImplied(entries int) int { return 1<<16 + 4*entries }

// maxText is how many bytes the names and xattrs of the entries may have.
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

// maxAllHeads is how many bytes of headers are kept in memory.
func maxAllHeads(entries int) int64 { return 8<<20 + 2<<10*int64(entries) }

// maxDeflated is how large contents of n bytes are at most as a deflate stream
// that is taken over. A stored block of 32 KiB has five bytes more; what is
// larger than this has empty blocks, and is compressed again.
func maxDeflated(n int64) int64 { return n + n/64 + 1<<10 }
