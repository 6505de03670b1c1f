package inspect

import (
	"cmp"
	"path"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// findDuplicates finds chunks that a lower layer has, or the same layer before
// them, by the digests of the TOCs.
func (im *Image) findDuplicates() {
	type chunk struct {
		digest digest.Digest
		size   int64
	}
	type place struct {
		layer int
		path  string
	}
	first := map[chunk]place{}
	im.Duplicates = []Duplicate{}
	for i, l := range im.Layers {
		if l.reader == nil {
			continue
		}
		l.duplicates = map[*estargz.Entry]bool{}
		at := map[string]int{} // in im.Duplicates
		for _, e := range l.reader.Entries() {
			d := contentDigest(e)
			if d == "" || isLandmark(e.Name) {
				continue
			}
			c := chunk{d, e.ChunkSize}
			of, known := first[c]
			if !known {
				first[c] = place{i + 1, e.Name}
				continue
			}
			l.duplicates[e] = true
			n, known := at[e.Name]
			if !known {
				n = len(im.Duplicates)
				at[e.Name] = n
				im.Duplicates = append(im.Duplicates, Duplicate{Layer: i + 1, Path: e.Name, OfLayer: of.layer, OfPath: of.path})
			}
			im.Duplicates[n].Bytes = sum(im.Duplicates[n].Bytes, e.ChunkSize)
			l.DuplicateBytes = sum(l.DuplicateBytes, e.ChunkSize)
		}
		im.DuplicateBytes = sum(im.DuplicateBytes, l.DuplicateBytes)
	}
	slices.SortFunc(im.Duplicates, func(a, b Duplicate) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Path, b.Path))
	})
}

// contentDigest is what a chunk is known by, empty for an entry without
// contents.
func contentDigest(e *estargz.Entry) digest.Digest {
	switch {
	case !e.HasContents():
		return ""
	case e.ChunkDigest == "" && e.ChunkSize == e.Size:
		return e.Digest
	}
	return e.ChunkDigest
}

// findShadowed finds files that the image does not show. Of files with several
// names all must be hidden.
func (im *Image) findShadowed() {
	im.Shadowed = []Shadowed{}
	upper := newMerged()
	for i := len(im.Layers) - 1; i >= 0; i-- {
		l := im.Layers[i]
		if l.reader == nil {
			continue
		}
		l.shadowed = map[*estargz.Entry]bool{}
		for _, s := range upper.hidden(l.reader) {
			l.shadowed[s.entry] = true
			im.Shadowed = append(im.Shadowed, Shadowed{Layer: i + 1, Path: s.entry.Name, Bytes: s.entry.Size, ByLayer: s.by})
			l.ShadowedBytes = sum(l.ShadowedBytes, s.entry.Size)
		}
		im.ShadowedBytes = sum(im.ShadowedBytes, l.ShadowedBytes)
		upper.add(i+1, l.reader)
	}
	slices.SortFunc(im.Shadowed, func(a, b Shadowed) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Layer, b.Layer), cmp.Compare(a.Path, b.Path))
	})
}

// merged is what upper layers have at each path: the number of the lowest layer
// that has it.
type merged struct {
	files   map[string]int // all but directories
	dirs    map[string]int
	deleted map[string]int // by whiteouts
	opaque  map[string]int // directories that hide what is in them
}

func newMerged() *merged {
	return &merged{files: map[string]int{}, dirs: map[string]int{}, deleted: map[string]int{}, opaque: map[string]int{}}
}

// add adds the layer below those that are known.
func (m *merged) add(number int, r *estargz.Reader) {
	for _, e := range r.Entries() {
		if e.Type == estargz.TypeChunk {
			continue
		}
		dir, base := path.Split(e.Name)
		dir = strings.TrimSuffix(dir, "/")
		switch {
		case base == opaque:
			m.opaque[dir] = number
		case strings.HasPrefix(base, whiteout):
			m.deleted[path.Join(dir, strings.TrimPrefix(base, whiteout))] = number
		case e.Type == estargz.TypeDir:
			m.dirs[e.Name] = number
		default:
			m.files[e.Name] = number
		}
	}
}

type hiddenFile struct {
	entry *estargz.Entry
	by    int // number of the layer that hides it
}

// hidden returns the regular files with contents that are hidden in a layer, in
// the order of its TOC.
func (m *merged) hidden(r *estargz.Reader) []hiddenFile {
	dirs := map[string]int{"": m.opaque[""]}
	by := map[*estargz.Entry]int{}
	visible := map[*estargz.Entry]bool{}
	var order []*estargz.Entry
	for _, name := range r.Entries() {
		if name.Type == estargz.TypeChunk || isLandmark(name.Name) || isWhiteout(name.Name) {
			continue
		}
		e, _ := r.Lookup(name.Name) // what a hard link leads to
		if e.Type != estargz.TypeReg || e.Size == 0 {
			continue
		}
		layer := lowest(m.files[name.Name], m.dirs[name.Name], m.deleted[name.Name], m.hiddenDir(parent(name.Name), dirs))
		if layer == 0 {
			visible[e] = true
		} else if by[e] == 0 {
			by[e] = layer
			order = append(order, e)
		}
	}
	var all []hiddenFile
	for _, e := range order {
		if !visible[e] {
			all = append(all, hiddenFile{e, by[e]})
		}
	}
	return all
}

// hiddenDir returns the layer that hides what lower layers have in a directory,
// zero if none does.
func (m *merged) hiddenDir(dir string, known map[string]int) int {
	layer, ok := known[dir]
	if !ok {
		layer = lowest(m.files[dir], m.deleted[dir], m.opaque[dir], m.hiddenDir(parent(dir), known))
		known[dir] = layer
	}
	return layer
}

// lowest returns the least of the numbers of layers, of which zero is none.
func lowest(layers ...int) (least int) {
	for _, n := range layers {
		if n != 0 && (least == 0 || n < least) {
			least = n
		}
	}
	return least
}

func parent(name string) string {
	dir, _ := path.Split(name)
	return strings.TrimSuffix(dir, "/")
}
