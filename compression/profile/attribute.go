package profile

import (
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
func (p *Profile) Attribute(layers []Layer) []*Profile {
	parts := make([]*Profile, len(layers))
	for i := range parts {
		parts[i] = &Profile{Files: []File{}}
	}
	m := &merged{layers: layers, dirs: map[string]string{}}
	for _, f := range p.Files {
		name, ok := m.resolve(f.Path)
		if !ok {
			continue
		}
		if i, node, ok := m.find(name); ok && node.Kind == Regular {
			f.Path = name
			parts[i].Files = append(parts[i].Files, f)
		}
	}
	for i := range parts {
		parts[i] = Merge(parts[i]) // two paths may lead to one file
	}
	return parts
}

// merged is the root filesystem that layers make.
type merged struct {
	layers []Layer
	dirs   map[string]string // directories that were resolved before
}

// find returns the topmost layer that has a path, unless one above it takes
// the path away.
func (m *merged) find(name string) (int, Node, bool) {
	for i := len(m.layers) - 1; i >= 0; i-- {
		if node, ok := m.layers[i](name); ok {
			return i, node, true
		}
		if hides(m.layers[i], name) {
			break
		}
	}
	return 0, Node{}, false
}

// hides says whether a layer takes away what those below it have at a path
// that it does not have itself.
func hides(l Layer, name string) bool {
	for name != "" {
		dir, base := split(name)
		if _, ok := l(join(dir, whiteout+base)); ok {
			return true
		}
		if _, ok := l(join(dir, opaque)); ok {
			return true
		}
		if node, ok := l(dir); ok && node.Kind != Directory && dir != "" {
			return true
		}
		name = dir
	}
	return false
}

// maxLinks is how many symlinks Linux follows in one path.
const maxLinks = 40

// resolve follows the symlinks in a path.
func (m *merged) resolve(name string) (string, bool) {
	for range maxLinks {
		dir, base := split(name)
		resolved, ok := m.resolveDir(dir)
		if !ok {
			return "", false
		}
		name = join(resolved, base)
		_, node, ok := m.find(name)
		if !ok || node.Kind != Symlink {
			return name, ok
		}
		name = target(resolved, node.Target)
	}
	return "", false
}

func (m *merged) resolveDir(dir string) (string, bool) {
	if dir == "" {
		return "", true
	}
	if known, ok := m.dirs[dir]; ok {
		return known, known != unresolved
	}
	m.dirs[dir] = unresolved // a circle of links comes by here again
	resolved, ok := m.resolve(dir)
	if ok {
		m.dirs[dir] = resolved
	}
	return resolved, ok
}

// unresolved is no clean path.
const unresolved = "/"

func target(dir, link string) string {
	if !path.IsAbs(link) {
		link = "/" + dir + "/" + link
	}
	return strings.TrimPrefix(path.Clean(link), "/")
}

func split(name string) (dir, base string) {
	dir, base = path.Split(name)
	return strings.TrimSuffix(dir, "/"), base
}

func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}
