package store

import (
	"path/filepath"
)

// A Layer is one layer of a store. It is safe for concurrent use.
type Layer struct {
	key   Key
	dir   string
	store *Store
	index *index
}

func (s *Store) openLayer(key Key, dir string) (*Layer, error) {
	x, err := openIndex(filepath.Join(dir, "index"), true)
	if err != nil {
		return nil, err
	}
	return &Layer{key: key, dir: dir, store: s, index: x}, nil
}

func (l *Layer) close() {}
