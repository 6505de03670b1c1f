package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/util/bklog"
)

// A shown layer stands in the directory of a lazy snapshot.
type shown struct {
	layer, dir string
	labels     map[string]string // of the snapshot

	unpacking chan struct{} // holds one while the layer is unpacked

	// mu is held while the layer is mounted or unmounted, however long that
	// takes, and guards what is below.
	mu     sync.Mutex
	broken error // why it is not mounted
	gone   bool  // with its snapshot
}

var (
	errNotYet = errors.New("it was not mounted yet")
	errGone   = errors.New("its mount was taken away or aborted")
	// errNoAnswer is the error of a caller that has waited for mountTime.
	errNoAnswer = errors.New("the kernel does not answer")
)

// mountTime is how long a caller waits for a mount. Garbage collection waits for
// that caller, as containerd's metadata has it, and others for garbage collection.
const mountTime = 30 * time.Second

// await runs f, which holds a layer's lock, and returns its error, or what ended
// the wait for it: f goes on then.
func (s *Snapshotter) await(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.patience, errNoAnswer)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// restore mounts the lazy snapshots of an earlier process. One that cannot be
// mounted does not keep the daemon from starting.
func (s *Snapshotter) restore(ctx context.Context) error {
	var names []string
	err := s.each(ctx, func(info snapshots.Info) {
		if isLazy(info) {
			names = append(names, info.Name)
		}
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		layer, err := s.layerOf(ctx, name)
		if err != nil {
			return err
		}
		if err := s.mount(ctx, layer); err != nil {
			bklog.G(ctx).WithError(err).Warnf("lazy snapshot %s of an earlier run is not mounted, its next user will try again", name)
		}
		if err := layer.removeParts(); err != nil {
			bklog.G(ctx).WithError(err).Warn("what an earlier run had unpacked of a layer stays on disk")
		}
	}
	return nil
}

func (s *Snapshotter) each(ctx context.Context, do func(snapshots.Info)) error {
	err := s.Snapshotter.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		do(info)
		return nil
	})
	if errdefs.IsNotFound(err) {
		return nil // a new database has no place for snapshots yet
	}
	return err
}

func isLazy(info snapshots.Info) bool {
	_, ok := info.Labels[remoteLabel]
	return ok && info.Kind == snapshots.KindCommitted
}

// layerOf returns what stands, or is to stand, in the directory of a lazy snapshot.
func (s *Snapshotter) layerOf(ctx context.Context, name string) (*shown, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if layer := s.shown[name]; layer != nil {
		return layer, nil
	}
	info, err := s.Snapshotter.Stat(ctx, name)
	if err != nil {
		return nil, err
	}
	layer := &shown{dir: directory(info), labels: info.Labels, unpacking: make(chan struct{}, 1), broken: errNotYet}
	layer.layer, _ = s.lazy.ID(info.Labels) // there is nothing to keep without
	s.shown[name] = layer
	return layer, nil
}

// mount puts a layer on its directory, unless it is there.
func (s *Snapshotter) mount(ctx context.Context, layer *shown) error {
	id, err := s.lazy.ID(layer.labels)
	if err != nil {
		return err
	}
	return s.await(ctx, func() error {
		layer.mu.Lock()
		defer layer.mu.Unlock()
		if layer.gone {
			return errdefs.ErrNotFound
		}
		if s.look(layer) == nil {
			return nil
		}
		layer.broken = s.lazy.Mount(id, layer.dir, layer.labels)
		if errors.As(layer.broken, new(unmountable)) {
			return &mountError{id, layer.broken}
		}
		if layer.broken != nil {
			return fmt.Errorf("mount layer %s: %w", id, layer.broken)
		}
		return nil
	})
}

// unmountable errors of Lazy.Mount say that nothing can be mounted here. Others, such as
// of too many open files, go away by themselves.
type unmountable interface {
	error
	Unmountable()
}

// A mountError is the error of a layer that was fetched and cannot be mounted.
type mountError struct {
	id    string
	cause error
}

func (e *mountError) Error() string { return fmt.Sprintf("mount layer %s: %v", e.id, e.cause) }
func (e *mountError) Unwrap() error { return e.cause }

// heal mounts a lazy snapshot that is not. One that could not be when the daemon
// started gets another chance, since now there may be somebody whose registry and
// credentials help. So does one whose mount is gone.
func (s *Snapshotter) heal(ctx context.Context, name string) error {
	layer, err := s.layerOf(ctx, name)
	if err != nil {
		return err
	}
	why := s.await(ctx, func() error {
		layer.mu.Lock()
		defer layer.mu.Unlock()
		return s.look(layer)
	})
	if why == nil || ctx.Err() != nil || errors.Is(why, errNoAnswer) {
		return why
	}
	id, err := s.lazy.ID(layer.labels)
	if err == nil {
		err = s.lazy.Fetch(ctx, id)
	}
	if err == nil {
		err = s.mount(ctx, layer)
	}
	if err != nil {
		return fmt.Errorf("not mounted: %w, and now: %w", why, err)
	}
	return nil
}

// look says why a layer is not mounted. Call it with the layer's lock held.
func (s *Snapshotter) look(layer *shown) error {
	if layer.broken != nil || s.lazy.Mounted(layer.dir) {
		return layer.broken
	}
	bklog.L.Warnf("layer %s is no longer mounted in %s, and is mounted again", layer.layer, layer.dir)
	if err := s.lazy.Unmount(layer.dir); err != nil {
		bklog.L.WithError(err).Warnf("what is left of the mount in %s", layer.dir)
	}
	layer.broken = errGone
	return errGone
}

// Remove leaves the mount of a lazy snapshot, like its directory, to the next
// Cleanup: containerd holds up everybody while snapshots are removed.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.Snapshotter.Remove(ctx, key); err != nil {
		return err
	}
	if layer := s.shown[key]; layer != nil {
		delete(s.shown, key)
		s.removed = append(s.removed, layer)
	}
	return nil
}

// Cleanup frees the disk of what was removed: mounts, directories, then layers
// that no snapshot shows any more. A layer that cannot be unmounted stays, and
// the error names it.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	s.mu.Lock()
	removed := slices.Clone(s.removed)
	s.mu.Unlock()
	return errors.Join(s.hide(ctx, removed), s.removeDirectories(ctx), s.removeUnused())
}

// hide unmounts layers for good, all at once: each may be in use for a while.
func (s *Snapshotter) hide(ctx context.Context, layers []*shown) error {
	errs := make([]error, len(layers))
	var all sync.WaitGroup
	for i, layer := range layers {
		all.Go(func() {
			err := s.await(ctx, func() error { return s.unmount(layer) })
			if err != nil {
				errs[i] = fmt.Errorf("layer %s is still mounted in %s: %w", layer.layer, layer.dir, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func (s *Snapshotter) unmount(layer *shown) error {
	layer.mu.Lock()
	defer layer.mu.Unlock()
	layer.gone = true
	if err := s.lazy.Unmount(layer.dir); err != nil {
		return err
	}
	layer.broken = errGone
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removed = slices.DeleteFunc(s.removed, func(other *shown) bool { return other == layer })
	return nil
}

// removeDirectories does what Cleanup of containerd's snapshotter does, which
// would try to empty a directory with a layer that is still mounted.
func (s *Snapshotter) removeDirectories(ctx context.Context) error {
	unused, err := s.unusedDirectories(ctx)
	errs := []error{err}
	for _, dir := range unused {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

func (s *Snapshotter) unusedDirectories(ctx context.Context) (dirs []string, err error) {
	s.making.Lock()
	defer s.making.Unlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	err = s.each(ctx, func(info snapshots.Info) { used[filepath.Dir(directory(info))] = true })
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, layer := range s.removed {
		used[filepath.Dir(layer.dir)] = true
	}
	for _, e := range entries {
		if dir := filepath.Join(s.dir, e.Name()); !used[dir] {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

func (s *Snapshotter) removeUnused() error {
	layers, err := s.lazy.Layers()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range layers {
		if done := s.take(id); done != nil {
			errs = append(errs, s.lazy.Remove(id))
			done()
		}
	}
	return errors.Join(errs...)
}

// take has callers of hold wait for a layer until done is called. It takes none
// that is in use.
func (s *Snapshotter) take(id string) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending[id] > 0 || s.leaving[id] != nil || s.inUse(id) {
		return nil
	}
	gone := make(chan struct{})
	s.leaving[id] = gone
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.leaving, id)
		close(gone)
	}
}

// inUse says whether a snapshot needs what was fetched of a layer. Call it with the lock held.
func (s *Snapshotter) inUse(id string) bool {
	is := func(layer *shown) bool { return layer.layer == id && !s.lazy.Unpacked(layer.dir) }
	return slices.ContainsFunc(slices.Collect(maps.Values(s.shown)), is) || slices.ContainsFunc(s.removed, is)
}

// hold keeps Cleanup away from a layer.
func (s *Snapshotter) hold(ctx context.Context, id string) (release func(), err error) {
	for {
		s.mu.Lock()
		leaving := s.leaving[id]
		if leaving == nil {
			s.pending[id]++
			s.mu.Unlock()
			return func() { s.release(id) }, nil
		}
		s.mu.Unlock()
		select {
		case <-leaving:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (s *Snapshotter) release(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending[id]--; s.pending[id] == 0 {
		delete(s.pending, id)
	}
}
