package store

import "time"

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
