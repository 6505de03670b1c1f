package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
)

// A Blob is read in ranges. It is safe for concurrent use.
type Blob struct {
	digest digest.Digest
	line   *Line
	roster roster
	spool  spool
	peer   atomic.Pointer[peer] // who answered last
	size   atomic.Int64         // as told with the last range that came; zero if not
}

// A Source is a place where a blob lies, for somebody who may read it: a
// repository with the hosts that serve it.
type Source struct {
	// Registry is the host in the image's name, such as "docker.io". Mirrors
	// that stand for several registries are told which one is meant.
	Registry string

	// Repository is the path between /v2/ and /blobs/, such as
	// "library/debian".
	Repository string

	// Digest is that of the blob there, if it has another one: a blob with other
	// bytes may hold the same contents at the same offsets.
	Digest digest.Digest

	// Reader is whose credentials the hosts take, such as a session of a
	// build. What goes wrong with them is nothing to other readers.
	Reader string

	// Alive says whether the reader is still there. The source is forgotten
	// when it is not. Nil means always.
	Alive func() bool

	// Successors returns sources with other readers, which share an operation
	// that reads the blob with this one. It is called when the reader is gone.
	// It may be nil.
	Successors func(blob digest.Digest) []Source

	// Answered is called when a host has given the reader some of the blob. It
	// may be nil.
	Answered func()

	// Hosts returns the registry and its mirrors in the order in which to ask
	// them. It is called again after all of them have failed, since
	// credentials or configuration may have changed.
	Hosts func() ([]docker.RegistryHost, error)
}

// Add adds sources, such as those with the credentials of a session that has
// just begun. They are asked first; those that the blob knows stay what they
// are. Reads that wait for a registry try again at once if there are new ones.
func (b *Blob) Add(sources ...Source) { b.roster.add(sources) }

// Probe says whether some host gives anything of the blob to a reader of its
// sources. It is one small request, made again like any other, and has the
// priority Wanted.
func (b *Blob) Probe(ctx context.Context) error {
	s := newStream(ctx, b, Wanted, span{0, 1})
	s.probe = true
	defer s.Close()
	return s.connect()
}

// With returns the blob as seen with a priority.
func (b *Blob) With(p Priority) View { return View{blob: b, priority: p} }

// Tail returns the last n bytes, or all if there are fewer, and the size of the
// blob. It is one request to servers that know suffix ranges. It has the
// priority Wanted.
func (b *Blob) Tail(ctx context.Context, n int64) ([]byte, int64, error) {
	if n <= 0 {
		return nil, 0, fmt.Errorf("tail of layer %s: %d bytes asked for", b.digest, n)
	}
	s := newStream(ctx, b, Wanted, span{suffix, n})
	defer s.Close()
	if err := s.connect(); err != nil {
		return nil, 0, err
	}
	p, size := make([]byte, s.rest.n), s.reply.size
	_, err := io.ReadFull(s, p)
	return p, size, err
}

// A View is a blob at a priority. It is safe for concurrent use.
type View struct {
	blob     *Blob
	priority Priority
}

var errRange = errors.New("no such range")

// Range returns n bytes from an offset on, or fewer where the blob ends. It asks
// for them at the first Read; the [Stream] that it returns says what happens then.
// The context ends the stream.
func (v View) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if off < 0 || n < 0 || off > math.MaxInt64-n {
		return nil, fmt.Errorf("layer %s: %d bytes at %d: %w", v.blob.digest, n, off, errRange)
	}
	return newStream(ctx, v.blob, v.priority, span{off, n}), nil
}

// Window returns how many bytes are worth asking for in one request: a round
// trip should not cost more than what it brings.
func (v View) Window() int64 {
	p := v.blob.peer.Load()
	if p == nil {
		p = &peer{}
	}
	return p.window(v.priority)
}
