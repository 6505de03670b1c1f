package estargz

import (
	"fmt"
	"path"
	"strings"

	digest "github.com/opencontainers/go-digest"
)

// deflateRatio is the most that deflate expands: 258 bytes for two bits.
const deflateRatio = 1032

// implicitMode is that of a directory which has no entry of its own.
const implicitMode = 0o755

// A file is what a name in the layer leads to.
type file struct {
	entry    *Entry
	chunks   []*Entry
	children map[string]*file
	links    int
}

// index checks every entry, makes the tree and fills in what the JSON leaves
// to be inferred.
func (r *Reader) index() error {
	r.files = map[string]*file{"": {entry: &Entry{Type: TypeDir, Mode: implicitMode}, links: 2}}
	files := r.indexFiles()
	if err := r.indexMembers(); err != nil {
		return err
	}
	for _, f := range files {
		if err := f.checkChunks(); err != nil {
			return fmt.Errorf("file %q: %w", f.entry.Name, err)
		}
	}
	return r.indexTree()
}

// indexFiles finds the file of each name and the chunks of each file. The last
// of several entries with one name counts. It returns the others as well.
func (r *Reader) indexFiles() (all []*file) {
	var last *file
	for _, e := range r.entries {
		if e.Type == TypeChunk {
			last.chunks = append(last.chunks, e)
			continue
		}
		last = &file{entry: e}
		if e.Type == TypeReg && e.Size > 0 {
			last.chunks = []*Entry{e}
		}
		r.files[e.Name] = last
		all = append(all, last)
	}
	return all
}

// indexMembers finds where the gzip member of each chunk ends: where the next
// one starts.
func (r *Reader) indexMembers() error {
	end, start := r.payload, r.payload
	for i := len(r.entries) - 1; i >= 0; i-- {
		e := r.entries[i]
		if !e.HasContents() {
			continue
		}
		if e.Offset < 0 || e.InnerOffset < 0 || e.Offset > start {
			return fmt.Errorf("entry %d (%q): offset %d, inner offset %d: want them in the order of the blob, before %d", i, e.Name, e.Offset, e.InnerOffset, start)
		}
		if e.Offset < start {
			start, end = e.Offset, start
		}
		if e.Offset == end {
			return fmt.Errorf("entry %d (%q): offset %d is the end of the blob", i, e.Name, e.Offset)
		}
		e.memberEnd = end
	}
	return nil
}

// checkChunks checks that the chunks make up the file and can be in their
// members.
func (f *file) checkChunks() error {
	if f.entry.Type != TypeReg || len(f.chunks) == 0 {
		return nil
	}
	size := f.entry.Size
	var off int64
	for i, c := range f.chunks {
		if c.ChunkOffset != off {
			return fmt.Errorf("chunk %d starts at %d, want %d", i, c.ChunkOffset, off)
		}
		if c.ChunkSize == 0 {
			c.ChunkSize = size - off
		}
		if c.ChunkSize <= 0 || c.ChunkSize > size-off {
			return fmt.Errorf("chunk %d has %d bytes of the %d that are left", i, c.ChunkSize, size-off)
		}
		if c.InnerOffset > most(c)-c.ChunkSize {
			return fmt.Errorf("chunk %d ends at %d of a member of %d bytes, which is more than deflate can hold", i, c.InnerOffset+c.ChunkSize, c.memberEnd-c.Offset)
		}
		if err := checkDigests(c); err != nil {
			return fmt.Errorf("chunk %d: %w", i, err)
		}
		off += c.ChunkSize
	}
	if off != size {
		return fmt.Errorf("chunks end at %d of %d bytes", off, size)
	}
	return nil
}

// most returns how many bytes the member of a chunk can decompress to.
func most(c *Entry) int64 {
	const limit = 1 << 52 // so that nothing overflows
	return min(c.memberEnd-c.Offset, limit) * deflateRatio
}

func checkDigests(e *Entry) error {
	for _, d := range []digest.Digest{e.ChunkDigest, e.Digest} {
		if d == "" || isSHA256(string(d)) {
			continue
		}
		if err := d.Validate(); err != nil {
			return fmt.Errorf("digest %q: %w", d, err)
		}
	}
	return nil
}

// isSHA256 says whether a digest is one of those that nearly all are. Validate
// takes longer than decoding the whole entry.
func isSHA256(d string) bool {
	hex, ok := strings.CutPrefix(d, "sha256:")
	return ok && len(hex) == 64 && strings.Trim(hex, "0123456789abcdef") == ""
}

// indexTree links every file into its directory. Directories without an entry
// get one.
func (r *Reader) indexTree() error {
	names := make([]string, 0, len(r.files))
	for _, e := range r.entries {
		if e.Type != TypeChunk && r.files[e.Name].entry == e {
			names = append(names, e.Name)
		}
	}
	for _, name := range names {
		if f := r.files[name]; f.entry.Type == TypeDir {
			f.links++ // its own "."
			if name == "" {
				f.links++ // its ".."
			}
		}
	}
	targets := map[string]*file{}
	for _, name := range names {
		f := r.files[name]
		if f.entry.Type == TypeHardlink {
			target, err := r.follow(f)
			if err != nil {
				return err
			}
			targets[name] = target
			f = target
		}
		if name == "" {
			continue
		}
		if err := r.link(name, f); err != nil {
			return err
		}
	}
	for name, target := range targets {
		r.files[name] = target
	}
	return nil
}

func (r *Reader) follow(f *file) (*file, error) {
	target, err := linkTarget(f.entry, func(name string) *Entry {
		if f := r.files[name]; f != nil {
			return f.entry
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return r.files[target.Name], nil
}

// link adds a file to its directory, making that and those above if need be.
func (r *Reader) link(name string, f *file) error {
	for {
		f.links++
		parent := parentName(name)
		dir, ok := r.files[parent]
		if !ok {
			if len(r.files) == maxTOCEntries {
				return fmt.Errorf("more than %d directories and files", maxTOCEntries)
			}
			if r.implied++; r.implied > maxImplied(len(r.entries)) {
				return fmt.Errorf("%.100q: %d directories have no entry of their own, beside %d entries", name, r.implied, len(r.entries))
			}
			dir = &file{entry: &Entry{Name: parent, Type: TypeDir, Mode: implicitMode}, links: 1}
			r.files[parent] = dir
		}
		if dir.entry.Type != TypeDir {
			return fmt.Errorf("%q lies under %q, which is a %s", name, parent, dir.entry.Type)
		}
		if dir.children == nil {
			dir.children = map[string]*file{}
		}
		dir.children[path.Base(name)] = f
		if f.entry.Type == TypeDir {
			dir.links++ // its ".."
		}
		if ok {
			return nil
		}
		name, f = parent, dir
	}
}
