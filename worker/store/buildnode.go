package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// modes are the file types of st_mode.
var modes = map[string]uint32{
	estargz.TypeDir:     unix.S_IFDIR,
	estargz.TypeReg:     unix.S_IFREG,
	estargz.TypeSymlink: unix.S_IFLNK,
	estargz.TypeChar:    unix.S_IFCHR,
	estargz.TypeBlock:   unix.S_IFBLK,
	estargz.TypeFifo:    unix.S_IFIFO,
}

// nodeOf makes the record of an entry, without what names and chunks add.
func (b *builder) nodeOf(e *estargz.Entry) (node, error) {
	// The largest number means nobody to the kernel.
	if uint64(e.UID) >= math.MaxUint32 || uint64(e.GID) >= math.MaxUint32 {
		return node{}, fmt.Errorf("owner %d:%d: want two numbers of 32 bits", e.UID, e.GID)
	}
	f := node{Mode: modes[e.Type] | uint32(e.Mode)&0o7777, UID: uint32(e.UID), GID: uint32(e.GID)}
	if !e.ModTime.IsZero() { // who leaves it out means 1970
		f.Mtime, f.Nsec = e.ModTime.Unix(), uint32(e.ModTime.Nanosecond())
	}
	var err error
	switch e.Type {
	case estargz.TypeReg:
		f.Size = e.Size
	case estargz.TypeSymlink:
		err = b.setTarget(&f, e.LinkName)
	case estargz.TypeChar, estargz.TypeBlock:
		f.Rdev, err = makedev(e.DevMajor, e.DevMinor)
	}
	if err == nil && len(e.Xattrs) > 0 {
		err = b.setXattrs(&f, e.Xattrs)
	}
	return f, err
}

func (b *builder) setTarget(f *node, target string) error {
	if target == "" || len(target) >= unix.PathMax || strings.IndexByte(target, 0) >= 0 {
		return fmt.Errorf("symlink to %.100q, %d bytes: want 1 to %d without a zero", target, len(target), unix.PathMax-1)
	}
	f.First, f.Count, f.Size = uint32(len(b.text)), uint32(len(target)), int64(len(target))
	b.text = append(b.text, target...)
	return nil
}

// makedev is the kernel's encoding of a device in 32 bits: 12 for the major, 20
// for the minor number.
func makedev(major, minor int) (uint32, error) {
	if uint(major) >= 1<<12 || uint(minor) >= 1<<20 {
		return 0, fmt.Errorf("device %d:%d: want numbers below %d:%d", major, minor, 1<<12, 1<<20)
	}
	return uint32(minor&0xff | major<<8 | minor&^0xff<<12), nil
}

func (b *builder) setXattrs(f *node, xattrs map[string][]byte) error {
	var p []byte
	names := 0
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		value := xattrs[name]
		if names += len(name) + 1; names > maxXattrNames {
			return fmt.Errorf("%d xattrs with names of more than %d bytes together, which Linux does not list", len(xattrs), maxXattrNames)
		}
		if name == "" || len(name) > maxNameSize || strings.IndexByte(name, 0) >= 0 || len(value) > maxXattrSize {
			return fmt.Errorf("xattr %.100q of %d bytes: Linux takes names of 1 to %d bytes, values up to %d", name, len(value), maxNameSize, maxXattrSize)
		}
		p = appendXattr(p, name, value)
	}
	f.Xattrs = uint32(len(b.text))
	b.text = binary.NativeEndian.AppendUint32(b.text, uint32(len(p)))
	b.text = append(b.text, p...)
	b.flags |= flagXattrs
	return nil
}

// contents is the part of a builder that makes the chunks.
type contents struct {
	chunks   []chunk
	prefetch int   // chunks before the landmark
	small    int64 // bytes of small files so far

	file    *openFile // whose chunks are being added
	member  int64     // where the gzip member that is being added to starts
	bounded int       // the chunks before this one know where their member ends
}

// An openFile is a regular file whose chunks are being added.
type openFile struct {
	node    Node
	size    int64
	at      int64 // where the next chunk starts
	ignored bool  // nothing can lead to its contents
}

// skipContents passes over the contents of a file that nobody sees. They take
// their place in the blob all the same.
func (b *builder) skipContents(e *estargz.Entry) error {
	if e.Type != estargz.TypeReg {
		return nil
	}
	b.file = &openFile{size: e.Size, ignored: true}
	if e.Size == 0 {
		return nil
	}
	return b.addChunk(e)
}

func (b *builder) startFile(n Node, e *estargz.Entry) error {
	if e.Type != estargz.TypeReg {
		return nil
	}
	b.file = &openFile{node: n, size: e.Size}
	if e.Size == 0 {
		return nil
	}
	f := &b.nodes[n]
	f.First = uint32(len(b.chunks))
	if f.Size < b.large {
		f.Small = b.small
		b.small += f.Size
	}
	return b.addChunk(e)
}

// endFile checks that the chunks make up the file.
func (b *builder) endFile() error {
	f := b.file
	b.file = nil
	if f != nil && !f.ignored && f.at != f.size {
		return fmt.Errorf("the chunks of the file before end at %d of %d bytes", f.at, f.size)
	}
	return nil
}

func (b *builder) addChunk(e *estargz.Entry) error {
	f := b.file
	if err := b.startMember(e.Offset); err != nil || f.ignored {
		return err
	}
	size := e.ChunkSize
	if size == 0 {
		size = f.size - f.at
	}
	if e.ChunkOffset != f.at || size <= 0 || size > f.size-f.at {
		return fmt.Errorf("a chunk of %d bytes at %d, want one at %d of %d", size, e.ChunkOffset, f.at, f.size)
	}
	if size > estargz.MaxChunkSize {
		return fmt.Errorf("a chunk of %d bytes, more than %d", size, estargz.MaxChunkSize)
	}
	const maxInner = 2 * estargz.MaxChunkSize // what shares a member is small
	if e.InnerOffset < 0 || e.InnerOffset > maxInner {
		return fmt.Errorf("inner offset %d: want 0 to %d", e.InnerOffset, maxInner)
	}
	if n := len(b.chunks); n > 0 && b.chunks[n-1].Offset == e.Offset {
		// If chunks overlapped, a member of some bytes could fill the disk.
		if end := int64(b.chunks[n-1].Inner) + int64(b.chunks[n-1].Size); e.InnerOffset < end {
			return fmt.Errorf("inner offset %d: want no less than %d, where the chunk before ends", e.InnerOffset, end)
		}
	}
	c := chunk{Offset: e.Offset, At: f.at, Inner: uint32(e.InnerOffset), Size: uint32(size), Node: f.node}
	want := e.ChunkDigest
	if want == "" && size == f.size {
		want = e.Digest
	}
	if err := parseDigest(&c.Digest, string(want)); err != nil {
		return err
	}
	b.chunks = append(b.chunks, c)
	b.nodes[f.node].Count++
	f.at += size
	return nil
}

// startMember ends the member before if a chunk starts another one.
func (b *builder) startMember(offset int64) error {
	if offset < b.member || offset >= b.payload {
		return fmt.Errorf("offset %d: want them in the order of the blob, from %d and before its TOC at %d", offset, b.member, b.payload)
	}
	if offset == b.member {
		return nil
	}
	if err := b.endMember(offset); err != nil {
		return err
	}
	b.member = offset
	return nil
}

// endMember tells the chunks of the last member where it ends.
func (b *builder) endMember(end int64) error {
	const deflateRatio = 1032 // at most: 258 bytes for two bits
	for ; b.bounded < len(b.chunks); b.bounded++ {
		c := &b.chunks[b.bounded]
		size := int64(c.Inner) + int64(c.Size)
		if (end - c.Offset) < size/deflateRatio {
			return fmt.Errorf("the chunk at %d ends at byte %d of a gzip member of %d bytes, which is more than deflate can hold", c.Offset, size, end-c.Offset)
		}
		c.Length = uint32(min(end-c.Offset, c.mostCompressed()))
	}
	return nil
}

// mostCompressed is how many bytes of the blob hold a chunk at most. Deflate makes
// what does not compress a little larger; all behind that is something else.
func (c *chunk) mostCompressed() int64 {
	const frame = 64 << 10
	return 2*(int64(c.Inner)+int64(c.Size)) + frame
}

// errNoDigest is why stargz, the format before eStargz, is refused.
var errNoDigest = errors.New("the TOC has no SHA-256 digest to verify a chunk by")

func parseDigest(to *[32]byte, digest string) error {
	hex, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || len(hex) != 64 {
		return errNoDigest
	}
	for i := range to {
		high, low := hexDigits[hex[2*i]], hexDigits[hex[2*i+1]]
		if high|low > 15 {
			return errNoDigest
		}
		to[i] = high<<4 | low
	}
	return nil
}

// hexDigits are the values of hexadecimal digits, 255 for all else.
var hexDigits = func() (values [256]byte) {
	for i := range values {
		values[i] = byte(bytes.IndexByte([]byte("0123456789abcdef"), byte(i)))
	}
	return values
}()
