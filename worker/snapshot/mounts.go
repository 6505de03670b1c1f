package snapshot

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/util/bklog"
)

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
		if err := s.mount(ctx, name); err != nil {
			bklog.G(ctx).WithError(err).Warnf("lazy snapshot %s of an earlier run is not mounted, its next user will try again", name)
			if err := s.giveUp(ctx, name, err); err != nil {
				return err
			}
		}
	}
	return s.Cleanup(ctx)
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

// mount puts a layer on the directory of its snapshot, unless it is there.
func (s *Snapshotter) mount(ctx context.Context, name string) error {
	info, err := s.Snapshotter.Stat(ctx, name)
	if err != nil {
		return err
	}
	id, err := s.lazy.ID(info.Labels)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if layer := s.shown[name]; layer != nil && layer.broken == nil {
		return nil
	}
	dir := directory(info)
	if err := s.lazy.Mount(id, dir, info.Labels); err != nil {
		return fmt.Errorf("mount layer %s: %w", id, err)
	}
	s.shown[name] = &shown{layer: id, dir: dir}
	return nil
}

// giveUp remembers that a layer is not mounted.
func (s *Snapshotter) giveUp(ctx context.Context, name string, why error) error {
	info, err := s.Snapshotter.Stat(ctx, name)
	if err != nil {
		return err
	}
	id, _ := s.lazy.ID(info.Labels) // nothing to keep where there is none
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shown[name] = &shown{layer: id, dir: directory(info), broken: why}
	return nil
}

// intact sees to it that all lazy snapshots below and including one are
// mounted. Those that could not be when the daemon started get another chance,
// since now there may be somebody whose registry and credentials help. So do those
// whose mount is gone.
func (s *Snapshotter) intact(ctx context.Context, name string) error {
	for name != "" && s.anyBroken() {
		info, err := s.Snapshotter.Stat(ctx, name)
		if err != nil {
			return err
		}
		if err := s.heal(ctx, info); err != nil {
			return err
		}
		name = info.Parent
	}
	return nil
}

func (s *Snapshotter) anyBroken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	broken := false
	for _, layer := range s.shown {
		if layer.broken == nil && !s.lazy.Mounted(layer.dir) {
			layer.broken = errGone
			if err := s.lazy.Unmount(layer.dir); err != nil {
				bklog.L.WithError(err).Warnf("what is left of the mount in %s", layer.dir)
			}
			bklog.L.Warnf("layer %s is no longer mounted in %s, its next user will try again", layer.layer, layer.dir)
		}
		broken = broken || layer.broken != nil
	}
	return broken
}

var errGone = errors.New("its mount was taken away or aborted")

func (s *Snapshotter) heal(ctx context.Context, info snapshots.Info) error {
	s.mu.Lock()
	layer := s.shown[info.Name]
	s.mu.Unlock()
	if layer == nil || layer.broken == nil {
		return nil
	}
	id, err := s.lazy.ID(info.Labels)
	if err == nil {
		err = s.lazy.Fetch(ctx, id)
	}
	if err == nil {
		err = s.mount(ctx, info.Name)
	}
	if err != nil {
		return fmt.Errorf("lazy snapshot %q could not be mounted again: %w, and now: %w", info.Name, layer.broken, err)
	}
	return nil
}

// Remove takes the mount of a lazy snapshot away with it, before anybody empties
// its directory.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	s.removing.Lock()
	defer s.removing.Unlock()
	if err := s.Snapshotter.Remove(ctx, key); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if layer := s.shown[key]; layer != nil {
		delete(s.shown, key)
		s.hide(layer)
	}
	return nil
}

// hide unmounts a layer, or leaves it to the next Cleanup.
func (s *Snapshotter) hide(layer *shown) {
	if layer.broken != nil {
		return
	}
	if err := s.lazy.Unmount(layer.dir); err != nil {
		bklog.L.WithError(err).Warnf("layer %s is still mounted in %s", layer.layer, layer.dir)
		s.stuck = append(s.stuck, layer)
	}
}

// Cleanup frees the disk of what was removed: directories, then layers that no
// snapshot shows any more.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	s.removing.Lock()
	defer s.removing.Unlock()
	if err := s.unstick(); err != nil {
		return err
	}
	if err := s.Snapshotter.(snapshots.Cleaner).Cleanup(ctx); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return s.removeUnused()
}

func (s *Snapshotter) unstick() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	stuck := s.stuck
	s.stuck = nil
	for _, layer := range stuck {
		s.hide(layer)
	}
	if len(s.stuck) > 0 {
		return fmt.Errorf("%d removed layers cannot be unmounted, the first in %s", len(s.stuck), s.stuck[0].dir)
	}
	return nil
}

func (s *Snapshotter) removeUnused() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	layers, err := s.lazy.Layers()
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, layer := range s.shown {
		used[layer.layer] = true
	}
	var errs []error
	for _, id := range layers {
		if !used[id] && s.pending[id] == 0 {
			errs = append(errs, s.lazy.Remove(id))
		}
	}
	return errors.Join(errs...)
}
