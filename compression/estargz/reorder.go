package estargz

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/klauspost/compress/gzip"
)

// Reorder writes the files of src to w as a blob in another order: first the
// named ones, in that order and before PrefetchLandmark, along with the
// directories above them and the files that hard links share. Names that src
// does not have are passed over; when none are left, NoPrefetchLandmark comes
// first. The others follow in the order they had.
//
// Where files share members and reading them in that order would have the same
// bytes decompressed many times, the named files stand in the order of src.
//
// It compresses nothing but headers: contents are taken over as they were
// compressed. A blob of another writer has no boundary between contents and the
// headers behind them, so that the last chunk of each file is compressed once
// more; one whose files share members, or with chunks larger than MaxChunkSize,
// is written anew, by the options.
//
// The checksum of every member is verified on the way.
func Reorder(ctx context.Context, w io.Writer, src *Reader, order []string, opts Options) (*Info, error) {
	if !src.whole {
		return nil, errors.New("estargz: files stand behind the TOC, which it cannot name")
	}
	room := src.roomToOrder()
	members, reusable, err := src.members(ctx)
	if err != nil {
		return nil, err
	}
	if !reusable {
		members = nil
		tar, err := src.orderedTar(ctx, order, room)
		if err != nil {
			return nil, err
		}
		return write(ctx, w, tar, opts, room)
	}
	if !room.take(members.heads()) {
		return nil, fmt.Errorf("estargz: headers: %w", room.full)
	}
	opts.ChunkSize, opts.MinChunkSize = members.largest(), 0
	o, err := newOutput(w, opts, room)
	if err != nil {
		return nil, err
	}
	r := &reorderer{src: src, members: members, headers: members.headers(ctx)}
	if err := r.scan(room); err != nil {
		return nil, err
	}
	if err := o.run(ctx, func(ctx context.Context, next func(int) (*batch, error), submit func(*batch)) error {
		r.next, r.submit = next, submit
		if err := r.reorder(order); err != nil {
			return err
		}
		return r.verifyOthers(ctx)
	}); err != nil {
		return nil, err
	}
	return o.finish(r.toc, len(src.implied))
}

// A reorderer puts the members of a blob together in another order.
type reorderer struct {
	src     *Reader
	members *members
	headers *io.SectionReader // the tar with zeros for contents
	parts   *parts

	next   func(n int) (*batch, error)
	submit func(*batch)
	cur    *batch
	jobs   []func(tar []byte) error // what fills cur
	toc    []*Entry
}

// listed returns the entry of each name in the TOC.
func (r *Reader) listed() map[string]*Entry {
	listed := make(map[string]*Entry, len(r.files))
	for _, e := range r.entries {
		if e.Type != TypeChunk {
			listed[e.Name] = e
		}
	}
	return listed
}

// scan finds the files of the tar and their entries in the TOC, and checks that
// these say the same.
func (r *reorderer) scan(room *room) (err error) {
	listed := r.src.listed()
	if r.parts, err = scanTar(r.headers, listed, &r.src.work, room); err != nil {
		return fmt.Errorf("estargz: headers: %w", err)
	}
	if err := r.parts.compare(listed); err != nil {
		return fmt.Errorf("estargz: %w", err)
	}
	for _, f := range r.parts.all {
		if f.entry == nil || f.replaced {
			continue
		}
		if err := r.describe(f, listed[f.name]); err != nil {
			return fmt.Errorf("estargz: %w", err)
		}
	}
	return nil
}

// describe completes the entry of a file with what the TOC knows of it: where its
// contents are, and their digests. All else stands in its headers.
func (r *reorderer) describe(f *part, in *Entry) error {
	at := f.contents
	chunks := r.src.chunks(in)
	for _, e := range chunks {
		if m := r.members.at[e.Offset]; m.tar != at {
			return fmt.Errorf("%q from %d is at %d of the tar, at %d by the TOC", f.name, e.ChunkOffset, at, m.tar)
		}
		at += e.ChunkSize
	}
	f.entry.Name = f.name
	f.entry.Digest, f.entry.Offset = in.Digest, in.Offset
	f.entry.ChunkSize, f.entry.ChunkDigest = in.ChunkSize, in.ChunkDigest
	for _, e := range chunks {
		if e == in {
			continue
		}
		c := *e
		f.chunks = append(f.chunks, &c)
	}
	return nil
}

func (r *reorderer) reorder(order []string) error {
	first, landmark, rest := r.parts.inOrder(order)
	for _, f := range first {
		if err := r.part(f); err != nil {
			return err
		}
	}
	if err := r.landmark(landmark); err != nil {
		return err
	}
	for _, f := range rest {
		if err := r.part(f); err != nil {
			return err
		}
	}
	if err := r.heads(endOfTar[:]); err != nil {
		return err
	}
	r.hand()
	return nil
}

// part appends a file.
func (r *reorderer) part(f *part) error {
	heads := make([]byte, f.contents-f.start)
	if _, err := r.headers.ReadAt(heads, f.start); err != nil {
		return fmt.Errorf("estargz: headers of %q: %w", f.name, noEOF(err))
	}
	if err := r.heads(heads); err != nil {
		return err
	}
	if f.entry == nil {
		return nil // a global header
	}
	r.toc = append(append(r.toc, f.entry), f.chunks...)
	if !f.entry.HasContents() {
		return nil
	}
	for _, e := range append([]*Entry{f.entry}, f.chunks...) {
		if err := r.chunk(e); err != nil {
			return err
		}
	}
	return nil
}

func (r *reorderer) landmark(name string) error {
	p := landmarkTar(name)
	if err := r.heads(p[:blockSize]); err != nil {
		return err
	}
	digest := digestOf(p[blockSize : blockSize+1])
	e := &Entry{Name: name, Type: TypeReg, Size: 1, Mode: landmarkMode, ModTime: time.Unix(0, 0), ChunkSize: 1, Digest: digest, ChunkDigest: digest}
	r.toc = append(r.toc, e)
	m, err := r.member(blockSize, 0)
	if err != nil {
		return err
	}
	m.chunks = []chunk{{entry: e, start: m.start, end: m.start + 1}}
	copy(r.cur.tar[m.start:m.end], p[blockSize:])
	return nil
}

// chunk appends a member with the contents of an old one.
func (r *reorderer) chunk(e *Entry) error {
	old := r.members.at[e.Offset]
	old.kept = true
	size := int(old.contents)
	m, err := r.member(size, tailRoom)
	if err != nil {
		return err
	}
	m.chunks = []chunk{{entry: e, start: m.start, end: m.start + int(e.ChunkSize)}}
	b, i := r.cur, len(r.cur.members)-1
	r.jobs = append(r.jobs, func(tar []byte) error {
		r.src.work.inflated.Add(old.contents)
		return old.restore(&b.members[i], tar)
	})
	return nil
}

// member opens a member for n bytes of contents.
func (r *reorderer) member(n, room int) (*member, error) {
	if r.cur == nil || len(r.cur.tar)+n > cap(r.cur.tar) {
		if err := r.nextBatch(n + room); err != nil {
			return nil, err
		}
	}
	b := r.cur
	start := len(b.tar)
	b.tar = b.tar[:start+n]
	b.members = append(b.members, member{start: start, tail: start + n, end: start + n})
	return &b.members[len(b.members)-1], nil
}

// heads appends headers to the last member, or to one of their own where that
// has no room.
func (r *reorderer) heads(p []byte) error {
	for len(p) > 0 {
		if r.cur == nil || len(r.cur.tar) == cap(r.cur.tar) {
			if err := r.nextBatch(0); err != nil {
				return err
			}
		}
		b := r.cur
		if len(b.members) == 0 {
			b.members = append(b.members, member{})
		}
		n := min(len(p), cap(b.tar)-len(b.tar))
		b.tar = append(b.tar, p[:n]...)
		b.members[len(b.members)-1].end = len(b.tar)
		p = p[n:]
	}
	return nil
}

// verifyOthers verifies the members whose contents are in no batch: an old
// landmark's, and those of files that later ones replace. Their headers are.
func (r *reorderer) verifyOthers(ctx context.Context) error {
	for _, m := range r.members.all {
		if m.cut == 0 || m.kept {
			continue // inflate or restore does it
		}
		in := &stoppable{r: io.NewSectionReader(m.blob, m.start, m.end-m.start), stopped: ctx.Err}
		z, err := gzip.NewReader(in)
		size, n := m.contents+int64(len(m.heads)), int64(0)
		if err == nil {
			n, err = io.Copy(io.Discard, io.LimitReader(z, size+1))
		}
		r.src.work.inflated.Add(n)
		if err == nil && n != size {
			err = fmt.Errorf("it has not the %d bytes that the TOC says", size)
		}
		if err != nil {
			return fmt.Errorf("estargz: member at %d: %w", m.start, noEOF(err))
		}
	}
	return nil
}

func (r *reorderer) nextBatch(n int) (err error) {
	r.hand()
	r.cur, err = r.next(n)
	return err
}

// hand hands the batch on. Its contents are restored by a worker.
func (r *reorderer) hand() {
	if r.cur == nil {
		return
	}
	b, jobs := r.cur, r.jobs
	b.fill = func() error {
		for _, job := range jobs {
			if err := job(b.tar); err != nil {
				return err
			}
		}
		return nil
	}
	r.submit(b)
	r.cur, r.jobs = nil, nil
}

// restore decompresses the contents of an old member to where a new one has
// them, and lends the new one their compressed form.
func (old *oldMember) restore(m *member, tar []byte) error {
	size := old.end - old.start
	if old.cut > 0 {
		size = int64(old.cut)
	}
	p := make([]byte, size, size+int64(len(emptyFinalBlock)+gzipTrailerSize)) // decompressCut appends these
	if _, err := old.blob.ReadAt(p, old.start); err != nil {
		return fmt.Errorf("estargz: member at %d: %w", old.start, noEOF(err))
	}
	contents := tar[m.start:m.tail]
	if err := old.decompress(contents, p); err != nil {
		return fmt.Errorf("estargz: member at %d: %w", old.start, noEOF(err))
	}
	if sum := crc32.Update(crc32.ChecksumIEEE(contents), crc32.IEEETable, old.heads); sum != old.sum {
		return fmt.Errorf("estargz: member at %d: checksum %08x, want %08x", old.start, sum, old.sum)
	}
	if old.cut > 0 {
		m.deflated, m.final = p[gzipHeaderSize:old.cut], old.final
	}
	return nil
}

func (old *oldMember) decompress(to, member []byte) error {
	if old.cut > 0 {
		return old.decompressCut(to, member)
	}
	z, err := gzip.NewReader(bytes.NewReader(member))
	if err != nil {
		return err
	}
	defer z.Close()
	_, err = io.ReadFull(z, to)
	return err
}

// decompressCut decompresses what stands before the boundary. Since it is taken
// over as it is, it must be the contents and nothing else, and end where a block
// does. What stands behind is overwritten.
func (old *oldMember) decompressCut(to, member []byte) error {
	p := member[gzipHeaderSize:old.cut]
	if !old.final {
		p = append(p, emptyFinalBlock...)
	}
	in := bytes.NewReader(append(p, make([]byte, gzipTrailerSize)...)) // see inflateHeads
	z := getInflater(in)
	defer inflaters.Put(z)
	if _, err := io.ReadFull(z, to); err != nil {
		return err
	}
	if n, err := z.Read(make([]byte, 1)); n > 0 || err != io.EOF || in.Len() != gzipTrailerSize {
		return errors.New("there is more before the boundary than the contents")
	}
	return nil
}
