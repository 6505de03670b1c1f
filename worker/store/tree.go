package store

import (
	"iter"
	"runtime"
	"time"
)

// A Node is a file of a layer by its number, the same for as long as the layer
// is on disk. Names that are hard links of one another have one node.
type Node uint32

// Root is the root directory of a layer, which every layer has.
const Root Node = 0

// Attr is what stat(2) tells about a node.
type Attr struct {
	Mode  uint32 // type and permission bits, as in st_mode
	UID   uint32
	GID   uint32
	Links uint32
	Rdev  uint32 // of devices, as makedev(3) makes it for the kernel's 32 bits
	Size  int64  // bytes; of a symlink the length of its target
	Mtime time.Time
}

// An Entry is a name in a directory.
type Entry struct {
	Name string
	Node Node
}

// Nodes returns how many nodes there are. All are smaller than this.
func (l *Layer) Nodes() int { return int(l.index.Nodes) }

// Attr returns what stat(2) tells about a node.
func (l *Layer) Attr(n Node) Attr {
	f := l.index.node(n)
	return Attr{
		Mode:  f.Mode &^ opaque,
		UID:   f.UID,
		GID:   f.GID,
		Links: f.Links,
		Rdev:  f.Rdev,
		Size:  f.Size,
		Mtime: time.Unix(f.Mtime, int64(f.Nsec)),
	}
}

// Lookup finds a name in a directory.
func (l *Layer) Lookup(dir Node, name string) (Node, bool) {
	return l.index.lookup(l.index.node(dir), name)
}

// Entries returns the entries of a directory from the from-th on, each with its
// place. They are in the order of their names; "." and ".." are not there.
func (l *Layer) Entries(dir Node, from int) iter.Seq2[int, Entry] {
	return func(yield func(int, Entry) bool) {
		d := l.index.node(dir)
		if !d.isDir() {
			return
		}
		for i := max(from, 0); i < int(d.Count); i++ {
			if !yield(i, l.index.entry(int(d.First)+i)) {
				return
			}
		}
	}
}

// Parent returns the directory that a directory is in. That of the root is the
// root.
func (l *Layer) Parent(dir Node) Node { return Node(l.index.node(dir).Parent) }

// Readlink returns the target of a symlink.
func (l *Layer) Readlink(n Node) string {
	f := l.index.node(n)
	if !f.isSymlink() {
		return ""
	}
	return string(l.index.textAt(f.First, f.Count))
}

// Xattrs returns the extended attributes of a node in the order of their names. A
// value must not be changed, or be used after the layer. Nothing is copied: a file
// with megabytes of values may have as many names as the layer has room for, and the
// kernel asks for each.
func (l *Layer) Xattrs(n Node) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		at := l.index.node(n).Xattrs
		if at == 0 {
			return
		}
		defer runtime.KeepAlive(l.index)
		for p := l.index.xattrsAt(at); len(p) > 0; {
			var name string
			var value []byte
			if name, value, p = nextXattr(p); !yield(name, value) {
				return
			}
		}
	}
}

// HasXattrs says whether any node has an extended attribute.
func (l *Layer) HasXattrs() bool { return l.index.Flags&flagXattrs != 0 }

// Opaque says whether a directory hides what lies below it in other layers.
func (l *Layer) Opaque(dir Node) bool { return l.index.node(dir).Mode&opaque != 0 }

// HasOpaque says whether any directory is opaque.
func (l *Layer) HasOpaque() bool { return l.index.Flags&flagOpaque != 0 }
