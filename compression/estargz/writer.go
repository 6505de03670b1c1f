package estargz

import (
	"context"
	"errors"
	"io"

	digest "github.com/opencontainers/go-digest"
)

// Options says how a blob is written. The zero value is what most callers
// want. The blob depends on the options and the input alone.
type Options struct {
	// Level is the gzip level, 1 (fast) to 9 (small). Zero means
	// DefaultLevel, NoCompression stores.
	Level int
	// ChunkSize is the largest number of uncompressed bytes of a file that
	// one chunk holds. Zero means DefaultChunkSize.
	ChunkSize int64
	// MinChunkSize lets small files share a gzip member until it holds this
	// many uncompressed bytes. Zero gives each file a member of its own.
	MinChunkSize int64
	// Order names the files that come first, before the prefetch landmark.
	// Nil keeps the order of the tar and writes no landmark.
	Order []string
	// Pool lends the workers and the memory. Nil means a pool of its own.
	Pool *Pool
}

// Info describes a written blob.
type Info struct {
	Digest           digest.Digest // of the blob
	Size             int64         // of the blob, in bytes
	DiffID           digest.Digest // of all the bytes the blob decompresses to, TOC included
	UncompressedSize int64         // of the same bytes
	TOCDigest        digest.Digest // of the TOC's JSON
}

const (
	DefaultLevel     = 6
	NoCompression    = -1
	DefaultChunkSize = 4 << 20
)

// A Pool is a budget of workers and memory that many writers share. It is safe
// for concurrent use.
type Pool struct{}

// NewPool makes a pool of that many workers which together hold about that
// many bytes.
func NewPool(workers int, memory int64) *Pool { return &Pool{} }

// Write reads a tar from r and writes it to w as an eStargz blob. Every byte of
// the tar is kept: Unpack of the blob returns it as it was.
func Write(ctx context.Context, w io.Writer, r io.Reader, opts Options) (*Info, error) {
	return nil, errors.New("not written yet")
}

// Detect says whether a blob of size bytes ends in an eStargz footer with a
// readable TOC in it.
func Detect(r io.ReaderAt, size int64) bool { return false }

// Unpack returns the tar that the blob was written from, without the TOC.
func Unpack(r io.ReaderAt, size int64) (io.ReadCloser, error) {
	return nil, errors.New("not written yet")
}
