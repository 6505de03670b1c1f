package estargz

import "fmt"

// A tocBuilder collects the entries of a TOC in the order of the tar. Of
// several entries with one name the last counts, as it does for whoever
// unpacks the tar; what would unpack to something a TOC cannot say is refused.
type tocBuilder struct {
	files  []*tocFile
	byName map[string]*tocFile
	last   string // name of the last entry, for messages

	count   int   // entries, replaced ones included, and implied directories
	live    int   // names with an entry
	implied int   // directories without one
	dropped int   // entries that later ones replace
	text    int64 // bytes of names and xattrs
	lookups int   // of names
}

type tocFile struct {
	entry    *Entry
	chunks   []*Entry // beyond the first
	shared   *Entry   // the file that a hard link leads to, once it was followed
	replaced bool
	implied  bool // stands in no TOC
	parent   bool // has children
	linked   bool // a hard link was made to it
}

func (t *tocBuilder) add(e *Entry) (*tocFile, error) {
	if t.byName == nil {
		t.byName = map[string]*tocFile{}
	}
	t.last = e.Name
	name := CleanName(e.Name)
	if name == "" && e.Type != TypeDir {
		return nil, fmt.Errorf("tar entry %q: the root is a %s, want a directory", e.Name, e.Type)
	}
	if err := t.limit(e); err != nil {
		return nil, err
	}
	if err := t.markParents(name, e); err != nil {
		return nil, err
	}
	f := &tocFile{entry: e}
	old := t.byName[name]
	if old != nil {
		if err := old.replaceBy(f); err != nil {
			return nil, err
		}
	}
	if old == nil || old.implied {
		t.live++
	} else if t.dropped++; t.dropped > maxReplaced(t.live) {
		return nil, fmt.Errorf("tar entry %.100q: %d entries have the names of later ones, more than %d beside %d names", e.Name, t.dropped, maxReplaced(t.live), t.live)
	}
	if e.Type == TypeHardlink {
		if target := t.byName[CleanName(e.LinkName)]; target != nil {
			target.linked = true
		}
	}
	t.byName[name] = f
	t.files = append(t.files, f)
	return f, nil
}

// chunk adds one more chunk of a file.
func (t *tocBuilder) chunk(f *tocFile, e *Entry) error {
	f.chunks = append(f.chunks, e)
	return t.limit(e)
}

// limit counts an entry, and refuses what no Reader accepts.
func (t *tocBuilder) limit(e *Entry) error {
	t.count++
	t.text += textOf(e)
	switch {
	case t.count > maxBuilt:
		return fmt.Errorf("tar entry %.100q: more than %d files, directories and chunks; split the layer, or use compression=gzip", e.Name, maxBuilt)
	case t.text > maxText(t.count):
		return fmt.Errorf("tar entry %.100q: names and xattrs up to it have %d bytes, more than %d for %d entries; use compression=gzip", e.Name, t.text, maxText(t.count), t.count)
	}
	return nil
}

// markParents marks the directories above a name. Those without an entry so
// far get one that stands in no TOC: an unpacker makes them too.
func (t *tocBuilder) markParents(name string, e *Entry) error {
	for name != "" {
		name = parentName(name)
		t.lookups++
		dir := t.byName[name]
		if dir == nil {
			t.count++
			t.implied++
			if t.implied > maxImplied(t.live) {
				return fmt.Errorf("tar entry %.100q: %d directories have no entry of their own, beside %d names that have; add them to the tar", e.Name, t.implied, t.live)
			}
			dir = &tocFile{entry: &Entry{Name: name, Type: TypeDir}, implied: true}
			t.byName[name] = dir
		} else if dir.entry.Type != TypeDir {
			return fmt.Errorf("tar entry %q lies under %q, which is a %s; put it under the directory itself", e.Name, dir.entry.Name, dir.entry.Type)
		}
		if dir.parent {
			return nil // so are those above
		}
		dir.parent = true
	}
	return nil
}

func (f *tocFile) replaceBy(other *tocFile) error {
	if f.parent && other.entry.Type != TypeDir {
		return fmt.Errorf("tar entry %q: a %s takes the place of a directory with files in it", other.entry.Name, other.entry.Type)
	}
	if f.linked {
		return fmt.Errorf("tar entry %q stands twice, and a hard link shares the first one", other.entry.Name)
	}
	f.replaced = true
	other.parent = f.parent
	return nil
}

// check finds hard links that lead nowhere.
func (t *tocBuilder) check() error {
	for _, f := range t.files {
		if f.entry.Type != TypeHardlink || f.replaced {
			continue
		}
		if err := followLink(f.entry, t.find, t.share, &t.lookups); err != nil {
			return fmt.Errorf("tar: %w", err)
		}
	}
	return nil
}

func (t *tocBuilder) find(name string) *Entry {
	f := t.byName[name]
	switch {
	case f == nil:
		return nil
	case f.shared != nil:
		return f.shared
	}
	return f.entry
}

func (t *tocBuilder) share(name string, target *Entry) { t.byName[name].shared = target }

// entries returns the TOC.
func (t *tocBuilder) entries() []*Entry {
	var all []*Entry
	for _, f := range t.files {
		if !f.replaced {
			all = append(append(all, f.entry), f.chunks...)
		}
	}
	return all
}
