package estargz

import (
	"crypto/sha256"
	"sync/atomic"

	digest "github.com/opencontainers/go-digest"
)

// A batch is a piece of the tar that one worker compresses: many small
// members, or one large. It is cut by the input and the options alone.
type batch struct {
	tar     []byte
	members []member
	blob    []byte // the members, compressed

	// fill makes the tar, on a worker, when whoever submits the batch does
	// not. filled is closed when the tar is there.
	fill   func() error
	filled chan struct{}

	reserved   int64 // bytes of the pool
	compressed chan error
	users      atomic.Int32 // who still reads the buffers
}

// A member becomes one gzip member: the contents of a file or chunk, and the
// headers that follow it up to the next contents.
type member struct {
	start, end int // in batch.tar
	// tail is where the headers behind the last contents and their padding
	// start, in batch.tar.
	tail   int
	chunks []chunk
	size   int // compressed

	// deflated are the contents as they were compressed before, nil to
	// compress them. final says that the stream ends there.
	deflated []byte
	final    bool
}

// A chunk is contents in a member.
type chunk struct {
	entry      *Entry
	file       *Entry // the first entry of the file, when it has several chunks
	start, end int    // in batch.tar
}

// digestChunks fills in the digests of the chunks, and of the files that are
// one chunk.
func (b *batch) digestChunks() {
	for _, m := range b.members {
		for _, c := range m.chunks {
			d := digestOf(b.tar[c.start:c.end])
			c.entry.ChunkDigest = d
			if c.file == nil {
				c.entry.Digest = d
			}
		}
	}
}

// place fills in where the members stand in the blob, the first at offset.
func (b *batch) place(offset int64) {
	for _, m := range b.members {
		for _, c := range m.chunks {
			c.entry.Offset = offset
			c.entry.InnerOffset = int64(c.start - m.start)
		}
		offset += int64(m.size)
	}
}

func digestOf(p []byte) digest.Digest {
	sum := sha256.Sum256(p)
	return digest.NewDigestFromBytes(digest.SHA256, sum[:])
}
