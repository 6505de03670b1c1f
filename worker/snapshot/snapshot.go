// Package snapshot is the containerd snapshotter named stargz: overlayfs with
// layers that are mounted before their contents are here.
//
// BuildKit asks for such a layer by preparing a snapshot with a label that
// names the committed snapshot it wants. When the layer can be lazy, that
// snapshot is made at once, with nothing in its directory but a mount; when
// not, an ordinary snapshot is prepared, into which BuildKit unpacks the layer.
//
// The package knows neither registries nor FUSE: what a lazy layer is, a
// [Lazy] knows. Metadata, directories and overlay mounts are those of
// containerd's overlay snapshotter, which is wrapped.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// A Lazy brings layers and mounts them. It is safe for concurrent use.
//
// The labels of a snapshot name its layer and say where it lies. Who may read it
// is told past the snapshotter, which keeps labels on disk.
type Lazy interface {
	// ID names the layer on this machine, or says why it cannot be lazy. It
	// looks at the labels alone.
	ID(labels map[string]string) (string, error)
	// Fetch brings what is needed to mount a layer.
	Fetch(ctx context.Context, id string) error
	// Refused tells those who watch the context's build why a layer is not lazy.
	Refused(ctx context.Context, labels map[string]string, why error)
	// Mount shows a layer that was fetched, by this process or an earlier one,
	// in a directory. Whatever a dead process left there goes away first. One whose
	// files were unpacked there needs no mount. If nothing can be mounted on this
	// machine, the error has a method Unmountable().
	Mount(id, dir string, labels map[string]string) error
	// Mounted says whether a layer is still shown in a directory.
	Mounted(dir string) bool
	// Unmount is called for each directory that Mount was called for, whether or not
	// that could mount the layer.
	Unmount(dir string) error
	// Unpacking tells those who watch the context's build why a layer, and others like
	// it, are unpacked.
	Unpacking(ctx context.Context, labels map[string]string, why error)
	// Unpack writes the files of a layer that cannot be mounted into an empty directory.
	Unpack(ctx context.Context, id, dir string, labels map[string]string) error
	// Unpacked says whether the files of a layer stand in a directory, so that it needs
	// nothing else of what was fetched.
	Unpacked(dir string) bool
	// Usage is what a layer in a directory takes of the disk now.
	Usage(id, dir string) (snapshots.Usage, error)
	// Layers are those that were fetched and not removed.
	Layers() ([]string, error)
	Remove(id string) error
}

const (
	// targetLabel names the snapshot that the caller wants to have.
	targetLabel = "containerd.io/snapshot.ref"
	// remoteLabel marks lazy snapshots; BuildKit looks for it.
	remoteLabel = "containerd.io/snapshot/remote"
	// UnpackedLabel is shown of a lazy snapshot whose layer was unpacked, since it
	// could not be mounted. BuildKit goes on taking it for lazy: its blob is not here.
	UnpackedLabel = "buildkitd-esgz/unpacked"
	// upperdirLabel is how the overlay snapshotter tells a snapshot's directory.
	upperdirLabel = "containerd.io/snapshot/overlay.upperdir"
)

// A Snapshotter is safe for concurrent use.
//
// The mounts that its methods return show lazy snapshots as they are: one that is not
// mounted is an empty directory. Call Show for each of those below before they are
// mounted.
type Snapshotter struct {
	snapshots.Snapshotter // containerd's, over overlayfs
	lazy                  Lazy

	dir      string        // of the snapshots' directories
	patience time.Duration // mountTime but for tests

	// targets are held while lazy snapshots of these names are made.
	targets names

	// making is held for reading while containerd's snapshotter makes a
	// directory for a snapshot that it then enters in its database.
	making sync.RWMutex

	// mu is never held while something is mounted, fetched or deleted.
	mu      sync.Mutex
	shown   map[string]*shown        // by the name of the lazy snapshot
	removed []*shown                 // that may still be mounted
	pending map[string]int           // layers that are being fetched for no snapshot yet
	leaving map[string]chan struct{} // layers that are being removed, closed when they are
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the snapshots below root, those of an earlier process included, and
// mounts the lazy ones.
func New(ctx context.Context, root string, lazy Lazy) (*Snapshotter, error) {
	// What a killed process mounted answers no more, and keeps directories
	// from being removed.
	dir := filepath.Join(root, "snapshots")
	if err := mount.UnmountRecursive(dir, unix.MNT_DETACH); err != nil {
		return nil, fmt.Errorf("unmount what an earlier run left in %s: %w", root, err)
	}
	inner, err := overlay.NewSnapshotter(root, overlay.AsynchronousRemove, overlay.WithUpperdirLabel)
	if err != nil {
		return nil, err
	}
	s := &Snapshotter{
		Snapshotter: inner, lazy: lazy, dir: dir, patience: mountTime,
		shown: map[string]*shown{}, pending: map[string]int{}, leaving: map[string]chan struct{}{},
	}
	if err := s.restore(ctx); err != nil {
		return nil, errors.Join(err, inner.Close())
	}
	return s, nil
}

// Prepare makes an active snapshot, or the lazy one that a label asks for; it
// then returns errdefs.ErrAlreadyExists, as the snapshotter interface wants.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var wanted snapshots.Info
	for _, opt := range opts {
		if err := opt(&wanted); err != nil {
			return nil, err
		}
	}
	target := wanted.Labels[targetLabel]
	if target == "" {
		return s.prepare(ctx, key, parent, opts...)
	}
	if err := s.prepareLazy(ctx, target, parent, wanted.Labels); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		// Whether the layer can be had at all, BuildKit finds out when it
		// pulls it.
		s.lazy.Refused(ctx, wanted.Labels, err)
		return s.prepare(ctx, key, parent, opts...)
	}
	return nil, fmt.Errorf("snapshot %q: %w", target, errdefs.ErrAlreadyExists)
}

func (s *Snapshotter) prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	s.making.RLock()
	defer s.making.RUnlock()
	return s.Snapshotter.Prepare(ctx, key, parent, opts...)
}

// prepareLazy fetches what a layer's mount needs, commits an empty snapshot and
// puts the mount on its directory. The order is that of what survives a crash:
// a snapshot that is committed can always be mounted again.
func (s *Snapshotter) prepareLazy(ctx context.Context, target, parent string, labels map[string]string) error {
	id, err := s.lazy.ID(labels)
	if err != nil {
		return err
	}
	release, err := s.hold(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	if info, err := s.Snapshotter.Stat(ctx, target); err == nil && s.isUnpacked(info) {
		return s.sameParent(ctx, target, parent)
	}
	if err := s.lazy.Fetch(ctx, id); err != nil {
		return err
	}
	if err := s.commitEmpty(ctx, target, parent, labels); err != nil {
		return err
	}
	layer, err := s.layerOf(ctx, target)
	if err != nil {
		return err
	}
	return s.mount(ctx, layer)
}

// commitEmpty commits a snapshot with nothing in it. Its size is asked for
// later, so that the overlay snapshotter need not walk a mount to know it.
func (s *Snapshotter) commitEmpty(ctx context.Context, target, parent string, labels map[string]string) error {
	// Images that share a base ask for the same snapshots at once.
	defer s.targets.lock(target)()
	labels = maps.Clone(labels)
	labels[remoteLabel] = "remote snapshot"
	opt := snapshots.WithLabels(labels)
	key := "lazy-" + target
	if _, err := s.prepare(ctx, key, parent, opt); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	err := s.Snapshotter.Commit(ctx, target, key, opt)
	if errdefs.IsAlreadyExists(err) {
		return errors.Join(s.Snapshotter.Remove(ctx, key), s.sameParent(ctx, target, parent))
	}
	return err
}

func (s *Snapshotter) sameParent(ctx context.Context, name, parent string) error {
	info, err := s.Snapshotter.Stat(ctx, name)
	if err == nil && info.Parent != parent {
		err = fmt.Errorf("snapshot %q is there upon %q, not upon %q", name, info.Parent, parent)
	}
	return err
}

// View is Prepare for readers.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	s.making.RLock()
	defer s.making.RUnlock()
	return s.Snapshotter.View(ctx, key, parent, opts...)
}

// Stat hides how the overlay snapshotter is asked for directories, and tells which
// lazy snapshots are unpacked.
func (s *Snapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	info, err := s.Snapshotter.Stat(ctx, key)
	return s.relabel(info), err
}

func (s *Snapshotter) relabel(info snapshots.Info) snapshots.Info {
	if s.isUnpacked(info) {
		info.Labels[UnpackedLabel] = "true"
	}
	delete(info.Labels, upperdirLabel)
	return info
}

func (s *Snapshotter) isUnpacked(info snapshots.Info) bool {
	return isLazy(info) && s.lazy.Unpacked(directory(info))
}

// Update shows the snapshot as Stat does.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	updated, err := s.Snapshotter.Update(ctx, info, fieldpaths...)
	return s.relabel(updated), err
}

// Usage of a lazy snapshot is what is here of it by now.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	info, err := s.Snapshotter.Stat(ctx, key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	if !isLazy(info) {
		return s.Snapshotter.Usage(ctx, key)
	}
	id, err := s.lazy.ID(info.Labels)
	if err != nil {
		return snapshots.Usage{}, err
	}
	return s.lazy.Usage(id, directory(info))
}

// Walk shows snapshots as Stat does.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.Snapshotter.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		return fn(ctx, s.relabel(info))
	}, filters...)
}

// Close unmounts all layers. Their snapshots stay on disk.
func (s *Snapshotter) Close() error {
	s.mu.Lock()
	layers := slices.AppendSeq(slices.Clone(s.removed), maps.Values(s.shown))
	clear(s.shown)
	s.mu.Unlock()
	return errors.Join(s.hide(context.Background(), layers), s.Snapshotter.Close())
}

func directory(info snapshots.Info) string { return filepath.Clean(info.Labels[upperdirLabel]) }
