package estargz

import (
	"path"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// The types of an entry. A chunk continues the regular file before it.
const (
	TypeDir      = "dir"
	TypeReg      = "reg"
	TypeSymlink  = "symlink"
	TypeHardlink = "hardlink"
	TypeChar     = "char"
	TypeBlock    = "block"
	TypeFifo     = "fifo"
	TypeChunk    = "chunk"
)

// Entry is one entry of the TOC: a file, or one more chunk of the file before.
type Entry struct {
	// Name is the path in the tar. A Reader hands it out cleaned and relative
	// to the root, which is "".
	Name string `json:"name"`
	Type string `json:"type"`

	// Size is the length of a regular file in bytes.
	Size int64 `json:"size,omitempty"`

	// ModTime is zero when unknown. A whole number of seconds in what others
	// write, exact in what this package writes.
	ModTime time.Time `json:"-"`

	// LinkName is the target of a symlink as it stands in the tar, or the name
	// of the entry that a hard link shares.
	LinkName string `json:"linkName,omitempty"`

	// Mode holds the permission bits with setuid, setgid and sticky.
	Mode  int64  `json:"mode,omitempty"`
	UID   int    `json:"uid,omitempty"`
	GID   int    `json:"gid,omitempty"`
	Uname string `json:"userName,omitempty"`
	Gname string `json:"groupName,omitempty"`

	DevMajor int `json:"devMajor,omitempty"`
	DevMinor int `json:"devMinor,omitempty"`

	Xattrs map[string][]byte `json:"xattrs,omitempty"`

	// Digest is that of a regular file's contents. Optional.
	Digest digest.Digest `json:"digest,omitempty"`

	// Offset is where the gzip member that holds the chunk starts in the
	// blob. Zero for entries without contents.
	Offset int64 `json:"offset,omitempty"`

	// InnerOffset is where the chunk starts in what that member decompresses
	// to. Zero unless several chunks share a member.
	InnerOffset int64 `json:"innerOffset,omitempty"`

	// ChunkOffset is where the chunk starts in the file.
	ChunkOffset int64 `json:"chunkOffset,omitempty"`

	// ChunkSize is the uncompressed length of the chunk. In the JSON a zero
	// means the rest of the file; a Reader hands it out filled in.
	ChunkSize   int64         `json:"chunkSize,omitempty"`
	ChunkDigest digest.Digest `json:"chunkDigest,omitempty"`

	// memberEnd is where the next gzip member starts in the blob, at is the
	// place among the entries. Only a Reader knows them.
	memberEnd int64
	at        int32
}

// MemberEnd returns where the gzip member that holds the chunk ends in the
// blob. Several chunks that share a member share its end.
func (e *Entry) MemberEnd() int64 { return e.memberEnd }

// HasContents says whether bytes of the blob belong to the entry.
func (e *Entry) HasContents() bool {
	return e.Type == TypeChunk || e.Type == TypeReg && e.Size > 0
}

// maxNameSize is what Linux takes for a path, PATH_MAX. No tool can unpack a
// longer one.
const maxNameSize = 4096

// CleanName makes a path of the tar relative to the root and lexically safe: no "..", no
// leading, trailing or double slash. The root itself is "".
func CleanName(name string) string {
	// Most names are nearly clean, and then this copies nothing.
	c := strings.TrimPrefix(path.Clean(name), "/")
	if c == "." {
		return ""
	}
	if c == ".." || strings.HasPrefix(c, "../") {
		return strings.TrimPrefix(path.Clean("/"+name), "/")
	}
	return c
}

// parentName returns the directory that holds a clean name.
func parentName(name string) string {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return ""
	}
	return name[:i]
}
