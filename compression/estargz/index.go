package estargz

import (
	"fmt"
	"strings"

	digest "github.com/opencontainers/go-digest"
)

// deflateRatio is the most that deflate expands: 258 bytes for two bits.
const deflateRatio = 1032

// implicitMode is that of a directory which has no entry of its own.
const implicitMode = 0o755

// index checks every entry, makes the tree and fills in what the JSON leaves
// to be inferred.
func (r *Reader) index() error {
	r.files = make(map[string]*Entry, len(r.entries))
	for i, e := range r.entries {
		if e.at = int32(i); e.Type != TypeChunk {
			r.files[e.Name] = e // of several with one name the last counts
		}
	}
	if err := r.indexMembers(); err != nil {
		return err
	}
	for _, e := range r.entries {
		if err := checkChunks(e, r.chunks(e)); err != nil {
			return fmt.Errorf("file %q: %w", e.Name, err)
		}
	}
	if err := r.indexTree(); err != nil {
		return err
	}
	return r.indexLinks()
}

// chunks returns the entries that hold the contents of a regular file.
func (r *Reader) chunks(e *Entry) []*Entry {
	if e.Type != TypeReg {
		return nil
	}
	first, end := int(e.at), int(e.at)+1
	if e.Size == 0 {
		first++ // what follows is an error
	}
	for end < len(r.entries) && r.entries[end].Type == TypeChunk {
		end++
	}
	return r.entries[first:end:end]
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
func checkChunks(file *Entry, chunks []*Entry) error {
	if len(chunks) == 0 {
		return nil
	}
	size := file.Size
	var off int64
	for i, c := range chunks {
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

// indexTree finds the directories that have no entry, and checks that files lie
// in directories.
func (r *Reader) indexTree() error {
	r.implied = map[string]struct{}{}
	if r.files[""] == nil {
		r.implied[""] = struct{}{}
	}
	for _, e := range r.entries {
		if e.Type == TypeChunk || r.files[e.Name] != e {
			continue
		}
		if err := r.indexParents(e); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reader) indexParents(e *Entry) error {
	for name := e.Name; name != ""; {
		parent := parentName(name)
		r.work.lookups++
		if dir := r.files[parent]; dir != nil {
			if dir.Type != TypeDir {
				return fmt.Errorf("%q lies under %q, which is a %s", name, parent, dir.Type)
			}
			return nil // those above it are its own
		}
		if _, known := r.implied[parent]; known {
			return nil
		}
		if len(r.files)+len(r.implied) == maxTOCEntries {
			return fmt.Errorf("more than %d directories and files", maxTOCEntries)
		}
		if len(r.implied) > maxImplied(len(r.entries)) {
			return fmt.Errorf("%.100q: %d directories have no entry of their own, beside %d entries", e.Name, len(r.implied), len(r.entries))
		}
		if err := r.allowance.takeMemory(impliedSize); err != nil {
			return fmt.Errorf("%.100q: directories have no entry of their own: %w", e.Name, err)
		}
		r.implied[parent] = struct{}{}
		name = parent
	}
	return nil
}

// indexLinks has the names of hard links lead to the files that they share.
func (r *Reader) indexLinks() error {
	for _, e := range r.entries {
		if e.Type != TypeHardlink || r.files[e.Name] != e {
			continue
		}
		if err := followLink(e, r.find, r.share, &r.work.lookups); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reader) find(name string) *Entry          { return r.files[name] }
func (r *Reader) share(name string, target *Entry) { r.files[name] = target }

// followLink has the name of a hard link, and of those that it leads through, lead
// to the file that they share. A chain of links is so followed once. A circle ends
// after as many steps as a name can have links on any file system.
func followLink(e *Entry, find func(name string) *Entry, share func(name string, target *Entry), lookups *int) error {
	const maxSteps = 100
	through, target := []string(nil), e
	for target.Type == TypeHardlink {
		if len(through) == maxSteps {
			return fmt.Errorf("hard link %q leads to no file in %d steps", e.Name, maxSteps)
		}
		through = append(through, CleanName(target.Name))
		next := find(CleanName(target.LinkName))
		*lookups++
		if next == nil {
			return fmt.Errorf("hard link %q leads to %q, which is not in the layer", e.Name, target.LinkName)
		}
		target = next
	}
	if target.Type == TypeDir {
		return fmt.Errorf("hard link %q leads to the directory %q", e.Name, target.Name)
	}
	for _, name := range through {
		share(name, target)
	}
	return nil
}
