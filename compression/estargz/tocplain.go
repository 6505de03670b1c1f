package estargz

import (
	"errors"
	"math"
	"time"
	"unicode/utf8"

	digest "github.com/opencontainers/go-digest"
)

// plain decodes entries as nearly all are: an object with the known keys, each
// once and spelled as it should be, strings without escapes, small integers.
// It takes a tenth of the time of encoding/json, and gives up on all else.
type plain struct {
	p       []byte
	at      int
	problem error // the first one
}

var (
	errSpecial = errors.New("not plain")
	errCut     = errors.New("not complete")
)

func (d *plain) fail(problem error) {
	if d.problem == nil {
		d.problem = problem
	}
}

// The keys of an entry, as bits of those that were seen.
const (
	keyName = 1 << iota
	keyType
	keySize
	keyModTime
	keyLinkName
	keyMode
	keyUID
	keyGID
	keyUname
	keyGname
	keyDevMajor
	keyDevMinor
	keyDigest
	keyOffset
	keyInnerOffset
	keyChunkOffset
	keyChunkSize
	keyChunkDigest
)

func (d *plain) entry(e *Entry) {
	d.expect('{')
	for seen := 0; d.problem == nil; d.expect(',') {
		key := d.text()
		d.expect(':')
		bit := d.field(e, string(key))
		if seen&bit != 0 || bit == 0 {
			d.fail(errSpecial)
		}
		seen |= bit
		if d.next() == '}' {
			d.at++
			return
		}
	}
}

// field decodes the value of a key and returns the key's bit.
func (d *plain) field(e *Entry, key string) int {
	switch key {
	case "name":
		e.Name = string(d.text())
		return keyName
	case "type":
		e.Type = d.entryType()
		return keyType
	case "size":
		e.Size = d.number()
		return keySize
	case "modtime":
		e.ModTime = d.time()
		return keyModTime
	case "linkName":
		e.LinkName = string(d.text())
		return keyLinkName
	case "mode":
		e.Mode = d.number()
		return keyMode
	case "uid":
		e.UID = d.int()
		return keyUID
	case "gid":
		e.GID = d.int()
		return keyGID
	case "userName":
		e.Uname = string(d.text())
		return keyUname
	case "groupName":
		e.Gname = string(d.text())
		return keyGname
	case "devMajor":
		e.DevMajor = d.int()
		return keyDevMajor
	case "devMinor":
		e.DevMinor = d.int()
		return keyDevMinor
	case "digest":
		e.Digest = d.digest(e.ChunkDigest)
		return keyDigest
	case "offset":
		e.Offset = d.number()
		return keyOffset
	case "innerOffset":
		e.InnerOffset = d.number()
		return keyInnerOffset
	case "chunkOffset":
		e.ChunkOffset = d.number()
		return keyChunkOffset
	case "chunkSize":
		e.ChunkSize = d.number()
		return keyChunkSize
	case "chunkDigest":
		e.ChunkDigest = d.digest(e.Digest)
		return keyChunkDigest
	}
	return 0
}

// next passes over white space and returns what follows, zero at the end.
func (d *plain) next() byte {
	for ; d.at < len(d.p); d.at++ {
		if c := d.p[d.at]; !isSpace(c) {
			return c
		}
	}
	d.fail(errCut)
	return 0
}

func (d *plain) expect(want byte) {
	if d.next() != want {
		d.fail(errSpecial)
		return
	}
	d.at++
}

// text returns a string, which is the caller's until the buffer changes.
func (d *plain) text() []byte {
	d.expect('"')
	start, ascii := d.at, true
	for ; d.at < len(d.p); d.at++ {
		c := d.p[d.at]
		if c == '"' {
			p := d.p[start:d.at]
			if d.at++; !ascii && !utf8.Valid(p) {
				break
			}
			return p
		}
		if c == '\\' || c < ' ' {
			break
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	if d.at < len(d.p) {
		d.fail(errSpecial)
	}
	d.fail(errCut)
	return nil
}

// number returns an integer that no arithmetic of 64 bits can overflow.
func (d *plain) number() int64 {
	negative := d.next() == '-'
	if negative {
		d.at++
	}
	start, n := d.at, int64(0)
	for ; d.at < len(d.p); d.at++ {
		c := d.p[d.at]
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int64(c-'0')
		if d.at-start > 15 {
			break
		}
	}
	digits := d.p[start:d.at]
	switch c := d.next(); {
	case c != ',' && c != '}', len(digits) == 0, digits[0] == '0' && (negative || len(digits) > 1):
		d.fail(errSpecial)
	}
	if negative {
		n = -n
	}
	return n
}

func (d *plain) int() int {
	n := d.number()
	if n < math.MinInt32 || n > math.MaxInt32 {
		d.fail(errSpecial)
	}
	return int(n)
}

func (d *plain) entryType() string {
	switch string(d.text()) {
	case TypeReg:
		return TypeReg
	case TypeDir:
		return TypeDir
	case TypeSymlink:
		return TypeSymlink
	case TypeHardlink:
		return TypeHardlink
	case TypeChar:
		return TypeChar
	case TypeBlock:
		return TypeBlock
	case TypeFifo:
		return TypeFifo
	case TypeChunk:
		return TypeChunk
	}
	d.fail(errSpecial)
	return ""
}

// digest returns a digest. Mostly that of the file and that of its only chunk
// are one.
func (d *plain) digest(other digest.Digest) digest.Digest {
	p := d.text()
	if string(p) == string(other) {
		return other
	}
	return digest.Digest(p)
}

func (d *plain) time() time.Time {
	p := d.text()
	if len(p) == 0 {
		d.fail(errSpecial)
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339, string(p))
	if err != nil {
		d.fail(errSpecial)
	}
	return t
}
