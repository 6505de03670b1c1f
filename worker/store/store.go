// Package store keeps eStargz layers on disk: the tree of each, made once from
// its TOC, and those of its contents that were fetched, verified chunk by
// chunk. It fetches what is asked for from wherever its user connects a layer
// to, and knows neither registries nor how a layer is mounted.
//
// A layer is a directory:
//
//	index    the tree and where the contents lie in the blob
//	present  which chunks are here
//	small    the contents of files below 1 MiB, sparse
//	large/   a file for each larger one, with the same offsets
//
// What was written is not synced. A killed daemon loses nothing, since all of
// it is in the page cache; after a crash of the machine, which the boot's ID
// tells, a chunk is verified once more before it counts.
package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// A Store is a directory of layers, of which one process at a time has one
// open. It is safe for concurrent use.
type Store struct {
	layersDir  string
	tmpDir     string
	trashDir   string
	trashed    atomic.Int64 // gives names
	bootID     string
	large      int64 // of the layers that are added
	building   *semaphore.Weighted
	buffers    *semaphore.Weighted // bytes of compressed members in memory
	tocs       atomic.Int64        // bytes that they may take yet
	flights    flights
	pace       func(context.Context) (soon bool, err error)
	waited     func(time.Duration)
	checkSpace func(bytes int64) error
	spare      func() error

	mu     sync.Mutex
	layers map[Key]*Layer
	adding map[Key]chan struct{} // closed when done
	opened atomic.Pointer[[]*Layer]
}

// maxBuffers bounds the compressed members that wait for a core. What finds no
// room is decompressed as it arrives.
const maxBuffers = 32 << 20

// Options is what a store may be told. The zero value is what most callers
// want.
type Options struct {
	// Waited is told of each read that had to wait for contents, and how long.
	Waited func(time.Duration)

	// Pace is asked before each request that Fill makes, and returns when it
	// may. Soon is whether somebody is likely to wait for it before long, so
	// that it counts as prefetch. Nil is for always, and never soon.
	Pace func(context.Context) (soon bool, err error)

	// CheckSpace is asked before contents are written whether the disk has room for so
	// many bytes. With its error they are not, and a read that waits for them
	// fails. Nil is for always.
	CheckSpace func(bytes int64) error

	// Spare is asked before contents are requested or copied that nobody waits
	// for, and its error ends Prefetch and Fill. Nil is for always.
	Spare func() error

	bootID string // of tests
	large  int64  // of tests: another largeFile
}

// Open opens the store below a directory, which it makes if need be, and
// removes what an interrupted process left half done.
func Open(root string, opts Options) (*Store, error) {
	s := &Store{
		layersDir:  filepath.Join(root, "layers"),
		tmpDir:     filepath.Join(root, "tmp"),
		trashDir:   filepath.Join(root, "trash"),
		bootID:     opts.bootID,
		large:      cmp.Or(opts.large, largeFile),
		building:   semaphore.NewWeighted(int64(runtime.GOMAXPROCS(0))),
		buffers:    semaphore.NewWeighted(maxBuffers),
		flights:    newFlights(),
		waited:     opts.Waited,
		pace:       opts.Pace,
		checkSpace: opts.CheckSpace,
		spare:      opts.Spare,
		layers:     map[Key]*Layer{},
		adding:     map[Key]chan struct{}{},
	}
	s.tocs.Store(maxTOCs)
	if s.waited == nil {
		s.waited = func(time.Duration) {}
	}
	if s.pace == nil {
		s.pace = func(ctx context.Context) (bool, error) { return false, ctx.Err() }
	}
	if s.checkSpace == nil {
		s.checkSpace = func(int64) error { return nil }
	}
	if s.spare == nil {
		s.spare = func() error { return nil }
	}
	if err := errors.Join(os.RemoveAll(s.tmpDir), os.RemoveAll(s.trashDir)); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	for _, dir := range []string{s.layersDir, s.tmpDir, s.trashDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
	}
	if s.bootID == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		s.bootID = string(id)
	}
	return s, nil
}

// Layer returns a layer that was added, always the same one for a key. The
// error of one that was not is fs.ErrNotExist.
func (s *Store) Layer(key Key) (*Layer, error) {
	name, err := key.dir()
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.layers[key]; l != nil {
		return l, nil
	}
	l, err := s.openLayer(key, filepath.Join(s.layersDir, name))
	if err != nil {
		return nil, fmt.Errorf("store: layer %s: %w", key.Blob, err)
	}
	s.layers[key] = l
	s.listOpen()
	return l, nil
}

// listOpen is called with the lock held when a layer comes or goes.
func (s *Store) listOpen() {
	list := slices.Collect(maps.Values(s.layers))
	s.opened.Store(&list)
}

// open are the layers that are open.
func (s *Store) open() []*Layer {
	if list := s.opened.Load(); list != nil {
		return *list
	}
	return nil
}

// Keys returns the layers on disk.
func (s *Store) Keys() ([]Key, error) {
	list, err := os.ReadDir(s.layersDir)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	var keys []Key
	for _, e := range list {
		if k, ok := keyOf(e.Name()); ok {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// Remove removes a layer and frees its disk. Who still uses it finds the tree,
// but no contents. A layer that is not there is no error.
func (s *Store) Remove(key Key) error {
	err := s.once(context.Background(), key, func() error { return s.remove(key) })
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// remove is Remove while nobody adds the layer. Nothing new is needed of the disk,
// which may be full.
func (s *Store) remove(key Key) error {
	name, err := key.dir()
	if err != nil {
		return err
	}
	trash := filepath.Join(s.trashDir, strconv.FormatInt(s.trashed.Add(1), 10))
	l, err := s.hide(key, filepath.Join(s.layersDir, name), trash)
	if l != nil {
		l.close()
	}
	return errors.Join(err, os.RemoveAll(trash))
}

// hide moves a layer away, and forgets it at the same time: what is left half
// removed is no layer, and is not opened again.
func (s *Store) hide(key Key, dir, away string) (*Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(dir, away); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l := s.layers[key]
	delete(s.layers, key)
	s.listOpen()
	return l, nil
}

// Close ends what is under way and waits for it. The layers cannot be read any
// more.
func (s *Store) Close() error {
	s.mu.Lock()
	layers := s.layers
	s.layers = map[Key]*Layer{}
	s.listOpen()
	s.mu.Unlock()
	for _, l := range layers {
		l.close()
	}
	return nil
}

// once runs add, or waits for who does so for the same key.
func (s *Store) once(ctx context.Context, key Key, add func() error) error {
	for {
		s.mu.Lock()
		other := s.adding[key]
		if other == nil {
			break
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	done := make(chan struct{})
	s.adding[key] = done
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.adding, key)
		s.mu.Unlock()
		close(done)
	}()
	return add()
}
