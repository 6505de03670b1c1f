package store

import (
	"errors"
	"fmt"
	"hash/maphash"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// A builder makes an index from the entries of a TOC, in their order and by the
// rules of whoever unpacks the tar: a later entry takes the place of an earlier
// one with its name, hard links share a file that is there already. Where the
// two could differ it refuses, and the layer is unpacked indeed.
type builder struct {
	payload int64 // bytes of the blob before the TOC
	large   int64 // bytes from where on a file has a backing file of its own
	limit   int   // bytes that may be in use

	nodes []node
	names []name
	base  []byte // the text of names
	text  []byte
	table []uint32 // of names, by hash; one more than their number, zero is free
	seed  maphash.Seed
	flags uint32

	lastDir  string // that was looked up last
	lastNode Node

	contents
}

// A name is an entry of a directory while these are not sorted yet.
type name struct {
	dir   Node
	node  Node
	start uint32 // in base
	hash  uint32
	size  uint8
}

const (
	// largeFile is from where on a file of a new layer has a backing file of its
	// own. Of those that are there their index says so.
	largeFile = 1 << 20

	// maxIndex bounds the memory that the TOC of one layer can take, about
	// twice as much while its tables grow. It is room for 1.5 million files. A
	// smaller layer has less, in proportion to its size: an ordinary one has 25
	// bytes of its blob or more for a file, which takes 130 here.
	maxIndex = 384 << 20

	maxNameSize   = unix.NAME_MAX
	maxXattrSize  = 64 << 10 // XATTR_SIZE_MAX
	maxXattrNames = 64 << 10 // XATTR_LIST_MAX

	whiteout       = ".wh."
	whiteoutOpaque = ".wh..wh..opq"

	// impliedMode is that of a directory which has no entry of its own.
	impliedMode = unix.S_IFDIR | 0o755
)

func maxIndexOf(payload int64) int { return int(min(32<<20+6*min(payload, maxIndex), maxIndex)) }

func newBuilder(payload, large int64) *builder {
	b := &builder{payload: payload, large: large, limit: maxIndexOf(payload), seed: maphash.MakeSeed(), table: make([]uint32, 1<<10)}
	b.text = append(b.text, 0) // so that nothing starts at zero
	b.nodes = append(b.nodes, node{Mode: impliedMode, Links: 2})
	return b
}

// add adds the next entry.
func (b *builder) add(e *estargz.Entry) error {
	if e.Type == estargz.TypeChunk {
		return b.addChunk(e)
	}
	if err := b.endFile(); err != nil {
		return err
	}
	// Symlinks and xattrs are one table, which takes most while it grows.
	if b.size() > b.limit || len(b.text) > b.limit/3 {
		return fmt.Errorf("an index of all files takes more than %d MB, or a third of that for symlinks and xattrs", b.limit>>20)
	}
	if e.Name == "" {
		return b.setDir(Root, e)
	}
	at := strings.LastIndexByte(e.Name, '/') + 1
	dir, err := b.dir(e.Name[:max(at-1, 0)])
	if err != nil {
		return err
	}
	base := e.Name[at:]
	switch {
	case dir == Root && hidden(base):
		return b.addHidden(base, e)
	case base == whiteoutOpaque:
		b.nodes[dir].Mode |= opaque
		b.flags |= flagOpaque
		return b.skipContents(e)
	case strings.HasPrefix(base, whiteout):
		return b.addWhiteout(dir, base[len(whiteout):], e)
	}
	return b.addFile(dir, base, e)
}

// hidden are the files of the root that belong to the format.
func hidden(base string) bool {
	return base == estargz.PrefetchLandmark || base == estargz.NoPrefetchLandmark || base == estargz.TOCName
}

func (b *builder) addHidden(base string, e *estargz.Entry) error {
	if e.Type != estargz.TypeReg {
		return fmt.Errorf("%q is a %s", base, e.Type)
	}
	if base == estargz.PrefetchLandmark {
		b.prefetch = len(b.chunks)
	}
	return b.skipContents(e)
}

// addWhiteout adds the file by which overlayfs knows that a name is gone. What
// becomes of a file of that name in the same layer, whoever unpacks it finds out:
// a file may take the place of the whiteout, but whether a directory then shows
// what lies below it, and what a whiteout does that follows a file, depends on
// where it is unpacked.
func (b *builder) addWhiteout(dir Node, base string, e *estargz.Entry) error {
	if err := b.skipContents(e); err != nil {
		return err
	}
	if base == "" || base == "." || base == ".." {
		return fmt.Errorf("a whiteout of %q", base)
	}
	if old, found := b.find(dir, base); found && !b.nodes[old.node].isWhiteout() {
		return fmt.Errorf("a whiteout of %q, which is in the same layer", base)
	}
	n, err := b.newNode(&estargz.Entry{Type: estargz.TypeChar, ModTime: e.ModTime, UID: e.UID, GID: e.GID})
	if err != nil {
		return err
	}
	return b.enter(dir, base, n)
}

func (n *node) isWhiteout() bool { return n.Mode&unix.S_IFMT == unix.S_IFCHR && n.Rdev == 0 }

// addFile adds anything that is no whiteout.
func (b *builder) addFile(dir Node, base string, e *estargz.Entry) error {
	old, found := b.find(dir, base)
	if found && e.Type == estargz.TypeDir && b.nodes[old.node].isDir() {
		return b.setDir(old.node, e)
	}
	if found && e.Type == estargz.TypeDir && b.nodes[old.node].isWhiteout() {
		return errors.New("a directory takes the place of a whiteout")
	}
	if found && b.nodes[old.node].isDir() && b.nodes[old.node].Count > 0 {
		return fmt.Errorf("a %s takes the place of a directory with files in it", e.Type)
	}
	if e.Type == estargz.TypeHardlink {
		target, err := b.linkTarget(e)
		if err != nil {
			return err
		}
		return b.enter(dir, base, target)
	}
	n, err := b.newNode(e)
	if err != nil {
		return err
	}
	if err := b.enter(dir, base, n); err != nil {
		return err
	}
	return b.startFile(n, e)
}

// linkTarget finds the file that a hard link shares, which is there already:
// an unpacker needs it too.
func (b *builder) linkTarget(e *estargz.Entry) (Node, error) {
	n, target := Root, estargz.CleanName(e.LinkName)
	if target == e.Name {
		return 0, errors.New("a hard link to itself")
	}
	for base := range strings.SplitSeq(target, "/") {
		next, found := b.find(n, base)
		if !found || b.nodes[next.node].isWhiteout() {
			return 0, fmt.Errorf("a hard link to %q, which is not in the layer before it", e.LinkName)
		}
		n = next.node
	}
	if b.nodes[n].isDir() {
		return 0, fmt.Errorf("a hard link to the directory %q", e.LinkName)
	}
	return n, nil
}

// dir finds a directory, and makes it and those above if need be.
func (b *builder) dir(path string) (Node, error) {
	if path == b.lastDir {
		return b.lastNode, nil
	}
	n := Root
	if path == "" {
		return n, nil
	}
	for base := range strings.SplitSeq(path, "/") {
		if strings.HasPrefix(base, whiteout) || n == Root && hidden(base) {
			return 0, fmt.Errorf("it lies under %q", base)
		}
		next, found := b.find(n, base)
		if found && b.nodes[next.node].isDir() {
			n = next.node
			continue
		}
		if found {
			return 0, fmt.Errorf("it lies under %q, which is no directory", base)
		}
		b.nodes = append(b.nodes, node{Mode: impliedMode, Links: 2})
		made := Node(len(b.nodes) - 1)
		if err := b.enter(n, base, made); err != nil {
			return 0, err
		}
		n = made
	}
	b.lastDir, b.lastNode = path, n
	return n, nil
}

// enter gives a node a name, which may be that of another one so far.
func (b *builder) enter(dir Node, base string, n Node) error {
	if len(base) > maxNameSize {
		return fmt.Errorf("a name of %d bytes is longer than Linux takes, %d", len(base), maxNameSize)
	}
	if b.nodes[n].isDir() {
		b.nodes[n].Parent = uint32(dir)
		b.nodes[dir].Links++ // its ".."
	} else {
		b.nodes[n].Links++
	}
	old, found := b.find(dir, base)
	if !found {
		b.nodes[dir].Count++
		b.insert(dir, base, n)
		return nil
	}
	b.leave(dir, old.node)
	old.node = n
	return nil
}

// leave takes a name from a node.
func (b *builder) leave(dir, n Node) {
	if !b.nodes[n].isDir() {
		b.nodes[n].Links--
		return
	}
	b.nodes[n].Links = 0
	b.nodes[dir].Links--
	b.lastDir, b.lastNode = "", Root // it may have been this one
}

// setDir gives a directory the attributes of an entry.
func (b *builder) setDir(n Node, e *estargz.Entry) error {
	f, err := b.nodeOf(e)
	if err != nil {
		return err
	}
	old := &b.nodes[n]
	f.Links, f.Count, f.Parent = old.Links, old.Count, old.Parent
	f.Mode |= old.Mode & opaque
	*old = f
	return nil
}

// newNode makes a node that has no name yet.
func (b *builder) newNode(e *estargz.Entry) (Node, error) {
	f, err := b.nodeOf(e)
	if err != nil {
		return 0, err
	}
	if f.isDir() {
		f.Links = 2
	}
	b.nodes = append(b.nodes, f)
	return Node(len(b.nodes) - 1), nil
}

// size estimates the bytes that are in use, with those that finish will need.
func (b *builder) size() int {
	const perNode, perName, perChunk = 64 + 4, 20 + 8 + 12, 64 + 12 + 16
	return len(b.nodes)*perNode + len(b.names)*perName + len(b.table)*4 + 2*len(b.base) + len(b.text) + len(b.chunks)*perChunk
}
