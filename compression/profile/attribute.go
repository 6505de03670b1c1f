package profile

import (
	"context"
	"path"
	"strings"
)

// A Kind is what a layer has at a path.
type Kind int

// The kinds that matter here.
const (
	Other Kind = iota
	Regular
	Directory
	Symlink
)

// A Node is a file in a layer.
type Node struct {
	Kind Kind
	// Target is where a symlink leads.
	Target string
}

// A Layer says what it has at a clean path without a leading slash. Whiteouts
// are files with their names; a hard link is what it links to.
type Layer func(path string) (Node, bool)

// What layers take away from those below them.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// Attribute gives each file of the profile to the layer that provides it, the
// topmost one that has it. Layers are given from the bottom up, and so is the
// answer. Files that no layer has were made by the workload, and are left out.
// Nothing in the layers is trusted: a path that Linux would not resolve leads to
// no file, and the work ends when ctx does.
func (p *Profile) Attribute(ctx context.Context, layers []Layer) ([]*Profile, error) {
	parts := make([]*Profile, len(layers))
	for i := range parts {
		parts[i] = &Profile{Files: []File{}}
	}
	m := &merged{layers: layers, dirs: map[string]walk{}}
	for _, f := range p.Files {
		w, err := m.resolve(ctx, f.Path)
		if err != nil {
			return nil, err
		}
		if w.ok && w.node.Kind == Regular {
			f.Path = w.name
			parts[w.layer].Files = append(parts[w.layer].Files, f)
		}
	}
	for i := range parts {
		parts[i] = Merge(parts[i]) // two paths may lead to one file
	}
	return parts, nil
}

// merged is the root filesystem that layers make.
type merged struct {
	layers []Layer
	dirs   map[string]walk // to the directories of files, by their paths in the profile
}

// A walk is where a path leads.
type walk struct {
	place
	links int  // symlinks that were followed
	ok    bool // the path exists
}

// A place is a file in the merged root filesystem.
type place struct {
	name   string
	node   Node
	layer  int    // the topmost one that has it
	lowest int    // the lowest layer that can have something under a directory
	parent *place // nil for the root
}

const (
	// maxLinks is how many symlinks Linux follows in one path.
	maxLinks = 40
	// maxPath is the longest path that Linux takes, in bytes.
	maxPath = 4096
)

// resolve follows a path from the root. Most files share their directory with
// others, whose walk is kept.
func (m *merged) resolve(ctx context.Context, name string) (walk, error) {
	if len(name) > maxPath {
		return walk{}, nil
	}
	dir, base := path.Split(name)
	w, known := m.dirs[dir]
	if !known {
		var err error
		if w, err = m.walk(ctx, walk{place: m.root(), ok: true}, dir); err != nil {
			return walk{}, err
		}
		m.dirs[dir] = w
	}
	return m.walk(ctx, w, base)
}

// walk follows a path from where w leads.
func (m *merged) walk(ctx context.Context, w walk, rest string) (walk, error) {
	for w.ok && rest != "" {
		if err := context.Cause(ctx); err != nil {
			return walk{}, err
		}
		if w.node.Kind != Directory {
			return walk{}, nil
		}
		var base string
		base, rest, _ = strings.Cut(rest, "/")
		switch {
		case base == "" || base == ".":
			continue
		case base == "..":
			if w.parent != nil {
				w.place = *w.parent
			}
			continue
		case len(w.name)+len(base) >= maxPath:
			return walk{}, nil
		}
		dir := w.place
		w.place, w.ok = m.child(&dir, base)
		if !w.ok || w.node.Kind != Symlink {
			continue
		}
		target := w.node.Target
		if w.links++; w.links > maxLinks || len(target) > maxPath {
			return walk{}, nil
		}
		w.place = dir
		if path.IsAbs(target) {
			w.place = m.root()
		}
		rest = target + "/" + rest
	}
	return w, nil
}

func (m *merged) root() place {
	root := place{node: Node{Kind: Directory}}
	for i := range m.layers {
		if m.has(i, opaque) {
			root.lowest = i
		}
	}
	return root
}

// child finds a name in a directory: in the topmost layer that has it, unless one
// above that takes it away.
func (m *merged) child(dir *place, base string) (found place, ok bool) {
	name, whiteout := join(dir.name, base), join(dir.name, whiteout+base)
	for i := len(m.layers) - 1; i >= dir.lowest; i-- {
		node, has := m.layers[i](name)
		if has && !ok {
			found, ok = place{name: name, node: node, layer: i, parent: dir, lowest: dir.lowest}, true
		}
		switch {
		case ok && found.node.Kind != Directory:
			return found, true
		case has && node.Kind != Directory:
			found.lowest = i + 1
			return found, true
		case m.has(i, whiteout), has && m.has(i, join(name, opaque)):
			found.lowest = i
			return found, ok
		}
	}
	return found, ok
}

func (m *merged) has(layer int, name string) bool {
	_, ok := m.layers[layer](name)
	return ok
}

func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}
