package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"runtime"
	"sort"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An index is the tree of a layer and where its contents are in the blob, as
// it lies on disk: tables of records of a fixed size that refer to one another
// by number. It is mapped, not read, so that it costs memory only where it is
// used, and the kernel may take that back.
//
// The mapping ends when nobody refers to the index any more. Every access goes
// through a method that copies what it finds and holds on to the index
// meanwhile.
type index struct {
	header
	nodes    []node
	chunks   []chunk
	prefixes []uint64    // the first bytes of the chunks' digests, ascending
	sorted   []uint32    // the chunks in the same order
	entries  []entry     // with one more, which ends the last name
	names    []byte      // of the entries, one behind the other
	text     []byte      // targets of symlinks, xattrs
	doubted  atomic.Bool // Payload is
}

// indexMagic is followed by indexVersion, which changes with anything in the
// directory of a layer: of the index, the presence and the places of contents.
// Numbers are in the order of the machine: an index stays where it was made.
var indexMagic = [7]byte{'e', 's', 'g', 'z', 'i', 'd', 'x'}

const indexVersion = '4'

type header struct {
	Magic     [7]byte
	Version   byte
	Checksum  uint32 // CRC-32C of all, with a zero here
	Flags     uint32
	Nodes     uint32
	Chunks    uint32
	Entries   uint32 // with the additional one
	Names     uint32 // bytes
	Text      uint32 // bytes
	Prefetch  uint32 // the chunks before this one are to be prefetched
	Large     int64  // bytes from where on a file has a backing file of its own
	SmallSize int64  // of the file that holds the contents of small files
	Payload   int64  // bytes of the blob before the TOC, as a registry had it: not verified
}

const (
	flagXattrs = 1 << iota // a node has xattrs
	flagOpaque             // a directory is opaque
)

// opaque is set in the mode of a directory that hides what lies below it.
const opaque = 1 << 31

// A node is a file. Each has a name in a directory, except for the root.
type node struct {
	Size   int64
	Mtime  int64 // seconds since 1970
	Small  int64 // of a small file: where its contents are among those of all
	Nsec   uint32
	Mode   uint32
	UID    uint32
	GID    uint32
	Links  uint32
	Rdev   uint32
	First  uint32 // of a directory its first entry, of a file its first chunk, of a symlink its target in the text
	Count  uint32 // of these entries, chunks, bytes
	Parent uint32 // of a directory
	Xattrs uint32 // in the text; zero for none
}

func (n *node) isDir() bool     { return n.Mode&unix.S_IFMT == unix.S_IFDIR }
func (n *node) isFile() bool    { return n.Mode&unix.S_IFMT == unix.S_IFREG }
func (n *node) isSymlink() bool { return n.Mode&unix.S_IFMT == unix.S_IFLNK }

// A chunk is a part of a file that is verified as a whole. Chunks are in the
// order of the blob, those of one file follow one another.
type chunk struct {
	Digest [32]byte // SHA-256
	Offset int64    // in the blob, of the gzip member
	At     int64    // in the file
	Inner  uint32   // in what the member decompresses to
	Size   uint32   // decompressed
	Length uint32   // of the member, or more: the most that it takes to hold the chunk
	Node   Node
}

// end is where the member ends in the blob.
func (c *chunk) end() int64 { return c.Offset + int64(c.Length) }

// An entry is a name in a directory. Its name ends where that of the next one
// starts.
type entry struct {
	Name uint32 // in names
	Node Node
}

// layout returns where each table starts, and behind them the size of all.
func (h *header) layout() [8]int64 {
	sizes := [7]int64{
		int64(h.Nodes) * int64(unsafe.Sizeof(node{})),
		int64(h.Chunks) * int64(unsafe.Sizeof(chunk{})),
		int64(h.Chunks) * 8,
		int64(h.Chunks) * 4,
		int64(h.Entries) * int64(unsafe.Sizeof(entry{})),
		int64(h.Names),
		int64(h.Text),
	}
	var at [8]int64
	at[0] = int64(unsafe.Sizeof(header{}))
	for i, size := range sizes {
		const align = 8
		at[i+1] = (at[i] + size + align - 1) / align * align
	}
	return at
}

func (x *index) tables() [7][]byte {
	return [7][]byte{bytesOf(x.nodes), bytesOf(x.chunks), bytesOf(x.prefixes), bytesOf(x.sorted), bytesOf(x.entries), x.names, x.text}
}

func bytesOf[T any](s []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(*new(T))))
}

func tableOf[T any](p []byte, n uint32) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(p))), n)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// writeTo writes the header and the tables.
func (x *index) writeTo(w io.Writer) error {
	at := x.layout()
	var padding [8]byte
	x.Magic, x.Version, x.Checksum = indexMagic, indexVersion, 0
	x.Checksum = crc32.Checksum(bytesOf([]header{x.header}), castagnoli)
	for i, table := range x.tables() {
		x.Checksum = crc32.Update(x.Checksum, castagnoli, table)
		x.Checksum = crc32.Update(x.Checksum, castagnoli, padding[:at[i+1]-at[i]-int64(len(table))])
	}
	if _, err := w.Write(bytesOf([]header{x.header})); err != nil {
		return err
	}
	for i, table := range x.tables() {
		if _, err := w.Write(table); err != nil {
			return err
		}
		if _, err := w.Write(padding[:at[i+1]-at[i]-int64(len(table))]); err != nil {
			return err
		}
	}
	return nil
}

var (
	errIndex   = errors.New("the index is damaged; remove the layer and pull it again")
	errVersion = errors.New("the layer is of another version of this program; remove it and pull it again")
)

// openIndex maps an index, and checks that it is as it was written.
func openIndex(name string) (*index, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() < int64(unsafe.Sizeof(header{})) {
		return nil, errIndex
	}
	p, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	x := &index{header: tableOf[header](p, 1)[0]}
	if err := x.check(p); err != nil {
		return nil, errors.Join(err, unix.Munmap(p))
	}
	at := x.layout()
	x.nodes = tableOf[node](p[at[0]:], x.Nodes)
	x.chunks = tableOf[chunk](p[at[1]:], x.Chunks)
	x.prefixes = tableOf[uint64](p[at[2]:], x.Chunks)
	x.sorted = tableOf[uint32](p[at[3]:], x.Chunks)
	x.entries = tableOf[entry](p[at[4]:], x.Entries)
	x.names = p[at[5]:][:x.Names]
	x.text = p[at[6]:][:x.Text]
	runtime.AddCleanup(x, func(p []byte) { _ = unix.Munmap(p) }, p)
	return x, nil
}

// check checks that the file of an index is as it was written, by this version.
func (x *index) check(p []byte) error {
	if x.Magic == indexMagic && x.Version != indexVersion {
		return errVersion
	}
	at, head := x.layout(), x.header
	head.Checksum = 0
	if x.Magic != indexMagic || at[7] != int64(len(p)) ||
		crc32.Update(crc32.Checksum(bytesOf([]header{head}), castagnoli), castagnoli, p[at[0]:]) != x.Checksum {
		return errIndex
	}
	return nil
}

// isLarge says whether a file has a backing file of its own. The others share
// one.
func (h *header) isLarge(n *node) bool { return n.isFile() && n.Size >= h.Large }

func (x *index) node(n Node) node {
	defer runtime.KeepAlive(x)
	return x.nodes[n]
}

// chunk returns a chunk. Where the last member of the blob ends does not follow
// from the TOC: it is expected where the TOC is said to start, until a chunk in it
// comes corrupt.
func (x *index) chunk(c uint32) chunk {
	defer runtime.KeepAlive(x)
	k := x.chunks[c]
	if k.end() > x.Payload && !x.doubted.Load() {
		k.Length = uint32(x.Payload - k.Offset)
	}
	return k
}

// doubt is called when a chunk has come corrupt.
func (x *index) doubt(c uint32) {
	defer runtime.KeepAlive(x)
	if x.chunks[c].end() > x.Payload {
		x.doubted.Store(true)
	}
}

func (x *index) entry(i int) Entry {
	defer runtime.KeepAlive(x)
	return Entry{Name: string(x.nameOf(i)), Node: x.entries[i].Node}
}

// nameOf returns a part of the mapping: its caller holds on to the index.
func (x *index) nameOf(i int) []byte {
	return x.names[x.entries[i].Name:x.entries[i+1].Name]
}

func (x *index) lookup(dir node, name string) (Node, bool) {
	defer runtime.KeepAlive(x)
	if !dir.isDir() {
		return 0, false
	}
	first, count := int(dir.First), int(dir.Count)
	i := first + sort.Search(count, func(i int) bool { return string(x.nameOf(first+i)) >= name })
	if i == first+count || string(x.nameOf(i)) != name {
		return 0, false
	}
	return x.entries[i].Node, true
}

func (x *index) textAt(at, n uint32) []byte {
	defer runtime.KeepAlive(x)
	return append([]byte(nil), x.text[at:][:n]...)
}

// The xattrs of a node are the length of all, and for each the lengths of name
// and value, name and value.
const xattrFrame = 8

func appendXattr(p []byte, name string, value []byte) []byte {
	p = binary.NativeEndian.AppendUint32(p, uint32(len(name)))
	p = binary.NativeEndian.AppendUint32(p, uint32(len(value)))
	return append(append(p, name...), value...)
}

func nextXattr(p []byte) (name string, value, rest []byte) {
	n, v := binary.NativeEndian.Uint32(p), binary.NativeEndian.Uint32(p[4:])
	p = p[xattrFrame:]
	return string(p[:n]), p[n:][:v:v], p[n+v:]
}

// xattrsAt returns a part of the mapping: its caller holds on to the index.
func (x *index) xattrsAt(at uint32) []byte {
	n := binary.NativeEndian.Uint32(x.text[at:])
	return x.text[at+4:][:n]
}
