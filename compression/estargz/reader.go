package estargz

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	digest "github.com/opencontainers/go-digest"
)

// A Reader knows the TOC of a blob and reads its files. It is safe for
// concurrent use.
type Reader struct {
	blob      io.ReaderAt
	size      int64 // of the blob, in bytes
	payload   int64 // bytes of it before the TOC
	entries   []*Entry
	files     map[string]*Entry   // what a name leads to
	implied   map[string]struct{} // directories without an entry
	allowance allowance           // that entries and implied took
	tocDigest digest.Digest
	work      work
	whole     bool // no file of the tar stands behind the TOC
}

// OpenOptions says how a blob is opened. The zero value fits a blob that
// carries its TOC.
type OpenOptions struct {
	// TOCDigest is what the TOC must have, from the layer's annotation. Empty
	// trusts the blob, whose own digest the caller knows to be right.
	TOCDigest digest.Digest
	// TOC is read where the blob says that its TOC lies elsewhere: a gzipped
	// tar with the TOC as its first entry.
	TOC io.Reader
	// Dense takes every layer that Write writes. Without it one that consists of
	// hundreds of thousands of empty files with similar names is refused, since it
	// takes far more memory than other layers of its size: as much as 64 bytes for
	// each byte of the blob instead of 9.
	Dense bool
}

// ErrExternalTOC is what Open returns for a blob whose TOC lies elsewhere when
// it was given none.
var ErrExternalTOC = errors.New("the TOC lies outside the blob")

// Open reads footer and TOC of a blob of size bytes and checks them. Of the
// contents it reads nothing.
func Open(blob io.ReaderAt, size int64, opts OpenOptions) (*Reader, error) {
	f, err := readFooter(blob, size)
	if err != nil {
		return nil, fmt.Errorf("estargz: %w", err)
	}
	r := &Reader{blob: blob, size: size, payload: f.tocOffset}
	toc := io.Reader(io.NewSectionReader(blob, f.tocOffset, size-f.size-f.tocOffset))
	where := fmt.Sprintf("TOC at %d", f.tocOffset)
	if f.external {
		if opts.TOC == nil {
			return nil, fmt.Errorf("estargz: %w", ErrExternalTOC)
		}
		r.payload, toc, where = size-f.size, opts.TOC, "external TOC"
	}
	r.allowance = allowance{payload: r.payload, dense: opts.Dense}
	if err := r.readTOC(toc, opts.TOCDigest); err != nil {
		return nil, fmt.Errorf("estargz: %s: %w", where, err)
	}
	if err := r.index(); err != nil {
		return nil, fmt.Errorf("estargz: %s: %w", where, err)
	}
	return r, nil
}

// Detect says whether a blob of size bytes is eStargz: it ends in a footer, and
// where that points there is a TOC. The TOC itself is not checked.
func Detect(blob io.ReaderAt, size int64) bool {
	f, err := readFooter(blob, size)
	if err != nil || f.external {
		return false
	}
	_, err = openTOC(io.NewSectionReader(blob, f.tocOffset, size-f.size-f.tocOffset), f.tocOffset)
	return err == nil
}

// A tocReader reads the JSON of a TOC.
type tocReader struct {
	*tar.Reader
	in io.LimitedReader // of the section that starts with the TOC, decompressed
}

// openTOC finds the JSON of the TOC in what is compressed behind so many bytes of
// payload.
func openTOC(r io.Reader, payload int64) (*tocReader, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	t := &tocReader{in: io.LimitedReader{R: z, N: maxTOC(payload) + maxBehindTOC}}
	t.Reader = tar.NewReader(&t.in)
	h, err := t.Next()
	if err != nil {
		return nil, err
	}
	if h.Name != TOCName || h.Typeflag != tar.TypeReg {
		return nil, fmt.Errorf("found the tar entry %q, want the file %q", h.Name, TOCName)
	}
	if most := maxTOC(payload); h.Size > most {
		return nil, fmt.Errorf("%d bytes of JSON are more than %d, the limit for a layer of %d bytes", h.Size, most, payload)
	}
	return t, nil
}

// maxBehindTOC is how much is read to find the end of the archive.
const maxBehindTOC = 64 << 10

// isLast says whether the archive ends behind the TOC, which was read.
func (t *tocReader) isLast() bool {
	t.in.N = maxBehindTOC
	_, err := t.Next()
	return err == io.EOF && t.in.N > 0
}

func (r *Reader) readTOC(section io.Reader, want digest.Digest) error {
	toc, err := openTOC(section, r.payload)
	if err != nil {
		return err
	}
	r.tocDigest, err = readTOC(toc, &r.allowance, func(e *Entry) error {
		c := *e
		r.entries = append(r.entries, &c)
		return nil
	})
	if err == nil && want != "" && r.tocDigest != want {
		err = fmt.Errorf("its digest is %s, want %s", r.tocDigest, want)
	}
	r.work.inflated.Add(maxTOC(r.payload) + maxBehindTOC - toc.in.N)
	if err == nil {
		r.whole = toc.isLast()
	}
	return err
}

// TOCDigest returns the digest of the TOC's JSON.
func (r *Reader) TOCDigest() digest.Digest { return r.tocDigest }

// Entries returns the TOC in its order, chunks included. It must not be
// changed.
func (r *Reader) Entries() []*Entry { return r.entries }

// Lookup returns the entry of a path, which may be absolute or relative to the
// root. Hard links lead to the file they share, directories that only the
// paths of others imply have an entry too.
func (r *Reader) Lookup(name string) (*Entry, bool) {
	name = CleanName(name)
	if e := r.files[name]; e != nil {
		return e, true
	}
	if _, ok := r.implied[name]; ok {
		return &Entry{Name: name, Type: TypeDir, Mode: implicitMode}, true
	}
	return nil, false
}

// Chunks returns the entries that hold the contents of a regular file, in the
// order of the file.
func (r *Reader) Chunks(name string) []*Entry {
	if e := r.files[CleanName(name)]; e != nil {
		return r.chunks(e)
	}
	return nil
}
