package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
)

// A Layer is one layer of a store. It is safe for concurrent use.
type Layer struct {
	key     Key
	dir     string
	store   *Store
	index   *index
	present *presence
	small   *os.File // the contents of small files

	blobs       atomic.Pointer[Blobs]
	cursor      atomic.Uint32 // the chunk behind what was wanted last
	prefetching atomic.Bool   // what is known to be needed
	corruption  corruption
	counters

	mu      sync.Mutex
	closed  bool
	running map[*run]context.CancelFunc
	ended   sync.WaitGroup // runs
}

// A Blob is where the contents of a layer come from.
type Blob interface {
	// Range returns n bytes from an offset, or fewer where the blob ends. It does
	// not wait for them, their reader does. What it returns may have a method Corrupt(), to be told by
	// who reads that bytes so far were not those of the layer, and methods
	// Hurry() and Relax(), to be told by anybody that somebody waits for them
	// now, or no longer, as if they had been asked of Blobs.Wanted, or of
	// Blobs.Prefetch at most.
	Range(ctx context.Context, off, n int64) (io.ReadCloser, error)
	// Window returns how many bytes are worth asking for at once.
	Window() int64
}

// Blobs are the same blob for three purposes: for who waits, for what is known
// to be needed soon, and for all else when nobody minds.
type Blobs struct{ Wanted, Prefetch, Background Blob }

// Connect tells where missing contents come from. It may be called again, for
// newer credentials.
func (l *Layer) Connect(b Blobs) {
	l.blobs.Store(&b)
	l.Retry()
}

// Retry lets chunks that came corrupt be fetched again at once.
func (l *Layer) Retry() { l.corruption.forget() }

// Key returns the name of the layer.
func (l *Layer) Key() Key { return l.key }

func (s *Store) openLayer(key Key, dir string) (*Layer, error) {
	x, err := openIndex(filepath.Join(dir, "index"))
	if err != nil {
		return nil, err
	}
	p, err := openPresence(filepath.Join(dir, "present"), int(x.Chunks), s.bootID)
	if err != nil {
		return nil, err
	}
	small, err := os.OpenFile(filepath.Join(dir, "small"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, errors.Join(err, p.file.Close())
	}
	l := &Layer{key: key, dir: dir, store: s, index: x, present: p, small: small, running: map[*run]context.CancelFunc{}}
	l.count()
	return l, nil
}

// close ends the runs and closes the files.
func (l *Layer) close() {
	l.mu.Lock()
	l.closed = true
	for _, cancel := range l.running {
		cancel()
	}
	l.mu.Unlock()
	l.ended.Wait()
	l.small.Close()
	l.present.file.Close()
}

// enter lets a run begin, unless the layer is closed.
func (l *Layer) enter(r *run, cancel context.CancelFunc) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.errorf("%w", os.ErrClosed)
	}
	l.running[r] = cancel
	l.ended.Add(1)
	return nil
}

func (l *Layer) leave(r *run) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running[r]()
	delete(l.running, r)
	close(r.ended)
	l.ended.Done()
}

// errorf makes an error that names the layer.
func (l *Layer) errorf(format string, args ...any) error {
	return fmt.Errorf("layer %s: "+format, append([]any{l.key.Blob}, args...)...)
}
