package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/util/bklog"
	"golang.org/x/sys/unix"
)

// Show mounts those of some lazy snapshots that are not mounted, or unpacks their
// layers where that is not possible: they were mounted by an earlier process, which had
// FUSE. To unpack a layer all of it is fetched, which takes as long as a pull. No method
// of [snapshots.Snapshotter] does so, since containerd's metadata is locked meanwhile.
func (s *Snapshotter) Show(ctx context.Context, names ...string) error {
	reported := false
	for _, name := range names {
		unpacking := func(labels map[string]string, why error) {
			if !reported {
				s.lazy.Unpacking(ctx, labels, why)
			}
			reported = true
		}
		err := s.show(ctx, name, unpacking)
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx) // whatever is known of the layer, the caller has left
		}
		if err != nil {
			return fmt.Errorf("lazy snapshot %q: %w", name, err)
		}
	}
	return nil
}

func (s *Snapshotter) show(ctx context.Context, name string, unpacking func(map[string]string, error)) error {
	var cannot *mountError
	if err := s.heal(ctx, name); !errors.As(err, &cannot) {
		return err
	}
	layer, err := s.layerOf(ctx, name)
	if err != nil {
		return err
	}
	select {
	case layer.unpacking <- struct{}{}:
		defer func() { <-layer.unpacking }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	// While this one waited it may have been unpacked.
	if err := s.heal(ctx, name); !errors.As(err, &cannot) {
		return err
	}
	unpacking(layer.labels, cannot.cause)
	if err := s.unpack(ctx, cannot.id, layer); err != nil {
		return fmt.Errorf("%w, and it is not unpacked: %w", cannot, err)
	}
	return nil
}

// unpack writes the files of a layer beside the snapshot's directory, which is empty,
// and replaces it at once: a process that is killed leaves a lazy snapshot.
func (s *Snapshotter) unpack(ctx context.Context, id string, layer *shown) error {
	part, err := os.MkdirTemp(filepath.Dir(layer.dir), partPrefix)
	if err != nil {
		return err
	}
	if err := s.lazy.Unpack(ctx, id, part, layer.labels); err != nil {
		return errors.Join(err, os.RemoveAll(part))
	}
	// A directory that is not empty is taken for all of the layer, also after the
	// machine has lost its power.
	if err := syncFilesystem(part); err != nil {
		return errors.Join(err, os.RemoveAll(part))
	}
	if err := s.await(ctx, func() error { return s.replace(layer, part) }); err != nil {
		return err
	}
	if err := syncFilesystem(layer.dir); err != nil { // before what could make the layer again goes
		return err
	}
	if err := s.removeUnused(); err != nil { // such as what was fetched of this one
		bklog.G(ctx).WithError(err).Warn("parts of lazy layers stay on disk")
	}
	return nil
}

// syncFilesystem has all that was written to the filesystem of a directory on disk.
func syncFilesystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return errors.Join(&os.PathError{Op: "syncfs", Path: dir, Err: err}, f.Close())
	}
	return f.Close()
}

// replace shows the files in a directory as a layer that is not mounted. Whether or not
// it can, the directory is gone afterwards.
func (s *Snapshotter) replace(layer *shown, part string) error {
	layer.mu.Lock()
	defer layer.mu.Unlock()
	if layer.gone {
		return errors.Join(errdefs.ErrNotFound, os.RemoveAll(part))
	}
	if s.look(layer) == nil { // it can be mounted now
		return os.RemoveAll(part)
	}
	if err := unix.Rename(part, layer.dir); err != nil { // os.Rename replaces no directory
		return errors.Join(&os.LinkError{Op: "rename", Old: part, New: layer.dir, Err: err}, os.RemoveAll(part))
	}
	layer.broken = s.lazy.Mount(layer.layer, layer.dir, layer.labels)
	return layer.broken
}

// partPrefix begins the names of directories in which the files of a layer stand while
// it is unpacked, beside its snapshot's.
const partPrefix = "unpacking-"

// removeParts removes those that an earlier process left.
func (l *shown) removeParts() error {
	beside := filepath.Dir(l.dir)
	entries, err := os.ReadDir(beside)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), partPrefix) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(beside, e.Name())))
		}
	}
	return err
}
