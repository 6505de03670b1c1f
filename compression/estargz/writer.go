package estargz

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// MaxChunkSize bounds Options.ChunkSize and Options.MinChunkSize: a chunk is
// verified as a whole, so that writers and readers hold it in memory.
const MaxChunkSize = 64 << 20

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

// Write reads a tar from r and writes it to w as an eStargz blob. Every byte of
// the tar is kept: Unpack of the blob returns it as it was. A tar that eStargz
// cannot hold is refused with the reason; what was written to w by then is of no
// use.
func Write(ctx context.Context, w io.Writer, r io.Reader, opts Options) (*Info, error) {
	return write(ctx, w, r, opts, nil)
}

// write takes the room for the TOC that it writes from there, unless it is nil.
func write(ctx context.Context, w io.Writer, r io.Reader, opts Options, room *room) (*Info, error) {
	o, err := newOutput(w, opts, room)
	if err != nil {
		return nil, err
	}
	s := &splitter{
		chunk:    int(o.opts.ChunkSize),
		minChunk: int(o.opts.MinChunkSize),
	}
	if err := o.run(ctx, func(ctx context.Context, next func(int) (*batch, error), submit func(*batch)) error {
		s.next, s.submit = next, submit
		return s.split(&patientReader{
			Reader:   r,
			after:    o.opts.Pool.after,
			lend:     o.buffers.lend,
			takeBack: func(n int64) error { return o.buffers.takeBack(ctx, n) },
		})
	}); err != nil {
		return nil, err
	}
	return o.finish(s.toc.entries(), s.toc.implied)
}

func (opts Options) withDefaults() (Options, error) {
	if opts.ChunkSize == 0 {
		opts.ChunkSize = DefaultChunkSize
	}
	if opts.Pool == nil {
		opts.Pool = NewPool(0, 0)
	}
	if opts.ChunkSize < 1 || opts.ChunkSize > MaxChunkSize {
		return opts, fmt.Errorf("chunk size %d: want 1 to %d bytes", opts.ChunkSize, MaxChunkSize)
	}
	if opts.MinChunkSize < 0 || opts.MinChunkSize > MaxChunkSize {
		return opts, fmt.Errorf("minimum chunk size %d: want 0 to %d bytes", opts.MinChunkSize, MaxChunkSize)
	}
	return opts, nil
}

// An output is the back half of a writer: it compresses batches side by side
// and writes them in order.
type output struct {
	opts  Options
	codec *codec
	blob  hashWriter
	tar   hashWriter // what the blob decompresses to

	buffers *buffers
	room    *room // for the TOC; nil if there is any
}

// A hashWriter counts and digests what passes.
type hashWriter struct {
	w    io.Writer
	hash hash.Hash
	n    int64
}

func (h *hashWriter) Write(p []byte) (int, error) {
	h.hash.Write(p)
	h.n += int64(len(p))
	if h.w == nil {
		return len(p), nil
	}
	return h.w.Write(p)
}

func (h *hashWriter) digest() digest.Digest {
	return digest.NewDigest(digest.SHA256, h.hash)
}

func newOutput(w io.Writer, opts Options, room *room) (*output, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	c, err := opts.Pool.codec(opts.Level)
	if err != nil {
		return nil, err
	}
	return &output{
		opts:    opts,
		codec:   c,
		blob:    hashWriter{w: w, hash: sha256.New()},
		tar:     hashWriter{hash: sha256.New()},
		buffers: newBuffers(opts),
		room:    room,
	}, nil
}

// run lets produce submit batches, which three stages then take side by side:
// compression on the pool's workers, the digest of the tar, and the blob.
func (o *output) run(ctx context.Context, produce func(ctx context.Context, next func(int) (*batch, error), submit func(*batch)) error) error {
	eg, ctx := errgroup.WithContext(ctx)
	toBlob := make(chan *batch, o.opts.Pool.queue)
	toHash := make(chan *batch, o.opts.Pool.queue)
	buffers := o.buffers

	eg.Go(func() error {
		defer close(toBlob)
		defer close(toHash)
		return produce(ctx,
			func(n int) (*batch, error) { return buffers.get(ctx, n) },
			func(b *batch) {
				buffers.submitted()
				if b.fill == nil {
					close(b.filled)
				}
				eg.Go(func() error { return o.compress(ctx, b) })
				toBlob <- b
				toHash <- b
			})
	})
	eg.Go(func() error { return o.hashTar(ctx, toHash, buffers) })
	eg.Go(func() error {
		// Whoever submits must not wait for a writer that has stopped.
		defer eg.Go(func() error {
			for b := range toBlob {
				<-b.compressed
				buffers.put(b)
			}
			return nil
		})
		return o.writeBlob(ctx, toBlob, buffers)
	})

	err := eg.Wait()
	buffers.close()
	return err
}

func (o *output) compress(ctx context.Context, b *batch) error {
	err := o.opts.Pool.work(ctx, func() error {
		if b.fill == nil {
			b.digestChunks()
			return o.codec.compress(b)
		}
		if err := b.fill(); err != nil {
			return err
		}
		close(b.filled)
		return o.codec.compress(b)
	})
	b.compressed <- err
	return err
}

// hashTar goes on taking batches after ctx is done, so that whoever submits them
// does not wait.
func (o *output) hashTar(ctx context.Context, in <-chan *batch, buffers *buffers) (err error) {
	file := sha256.New()
	for b := range in {
		select {
		case <-b.filled:
			o.hashBatch(file, b)
		case <-ctx.Done(): // it may never be filled
			err = ctx.Err()
		}
		buffers.put(b)
	}
	return err
}

func (o *output) hashBatch(file hash.Hash, b *batch) {
	o.tar.Write(b.tar)
	for i := range b.members { // by index: a worker fills in other fields
		for _, c := range b.members[i].chunks {
			if c.file != nil {
				hashFile(file, b.tar[c.start:c.end], c)
			}
		}
	}
}

// hashFile digests a file of several chunks as they pass.
func hashFile(h hash.Hash, p []byte, c chunk) {
	if c.entry.ChunkOffset == 0 {
		h.Reset()
	}
	h.Write(p)
	if c.entry.ChunkOffset+int64(len(p)) == c.file.Size {
		c.file.Digest = digest.NewDigest(digest.SHA256, h)
	}
}

// writeBlob writes batches until an error.
func (o *output) writeBlob(ctx context.Context, in <-chan *batch, buffers *buffers) error {
	for b := range in {
		err := <-b.compressed
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			b.place(o.blob.n)
			_, err = o.blob.Write(b.blob)
		}
		buffers.put(b)
		if err != nil {
			return err
		}
	}
	return nil
}

// finish writes the TOC and the footer.
func (o *output) finish(entries []*Entry, implied int) (*Info, error) {
	toc, err := encodeTOC(entries, implied, o.blob.n, o.room)
	if err != nil {
		return nil, err
	}
	offset := o.blob.n
	sum, err := o.writeTOC(toc)
	if err != nil {
		return nil, err
	}
	if _, err := o.blob.Write(footerBytes(offset)); err != nil {
		return nil, err
	}
	return &Info{
		Digest:           o.blob.digest(),
		Size:             o.blob.n,
		DiffID:           o.tar.digest(),
		UncompressedSize: o.tar.n,
		TOCDigest:        sum,
	}, nil
}

// writeTOC returns the digest of the JSON.
func (o *output) writeTOC(toc *tocJSON) (digest.Digest, error) {
	out := bufio.NewWriter(&o.blob)
	z := o.codec.get()
	defer o.codec.put(z)
	m, err := z.open(out)
	if err != nil {
		return "", err
	}
	t := tar.NewWriter(io.MultiWriter(&o.tar, m))
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: TOCName, Size: toc.size}); err != nil {
		return "", err
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(t, sum), toc.reader()); err != nil {
		return "", err
	}
	err = errors.Join(t.Close(), m.Close(), out.Flush())
	return digest.NewDigest(digest.SHA256, sum), err
}
