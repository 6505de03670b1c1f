// Package lazy has the layers that are read while they are being fetched. It
// puts the line to the registries, the store on disk and FUSE together to what
// the snapshotter needs to know of a layer.
//
// The worker makes one Layers, the snapshotter fetches and mounts through it.
// What becomes of each layer afterwards, prefetch and background fetch, is done
// here, and what users see of it.
package lazy

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/blob"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazyfs"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/snapshot"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// Layers are all lazy layers of a worker. It is safe for concurrent use.
type Layers struct {
	opts  Options
	line  *blob.Line
	store *store.Store
	ahead *lookahead
	calm  *calm
	*metrics

	mu     sync.Mutex
	open   map[string]*layer  // by ID
	mounts map[string]mounted // by directory
}

// A mounted layer is served in a directory.
type mounted struct {
	id     string
	server *lazyfs.Server
}

// Options says how layers are fetched. Hosts is required.
type Options struct {
	// Hosts knows how to reach the registries.
	Hosts Hosts
	// UserXattr marks opaque directories for an overlayfs that is mounted in a
	// user namespace.
	UserXattr bool
	Config
}

var _ snapshot.Lazy = (*Layers)(nil)

// New opens the layers below root.
func New(root string, opts Options) (*Layers, error) {
	opts.Config = opts.Config.withDefaults()
	m, c := newMetrics(), &calm{}
	waited := func(d time.Duration) { m.waited(d); c.waits() }
	st, err := store.Open(filepath.Join(root, "layers"), store.Options{Waited: waited, Pace: c.await})
	if err != nil {
		return nil, err
	}
	line := blob.NewLine(blob.Options{
		Connections:   opts.Connections,
		BytesInFlight: opts.BytesInFlight,
		Deadline:      opts.Deadline.Duration,
		Stall:         opts.Stall.Duration,
		TempDir:       root, // which the store has made
	})
	return &Layers{
		opts: opts, line: line, store: st, ahead: newLookahead(), calm: c, metrics: m,
		open: map[string]*layer{}, mounts: map[string]mounted{},
	}, nil
}

// ID names a layer by the digests of the blob and of its TOC.
func (l *Layers) ID(labels map[string]string) (string, error) {
	key, err := keyOf(labels)
	if err != nil {
		return "", err
	}
	return idOf(key), nil
}

// Fetch brings footer and TOC of a layer and makes the index that it is mounted
// with. Those of the other layers of its image it asks for as well, so that
// they are there when their turn comes.
func (l *Layers) Fetch(ctx context.Context, id string, labels map[string]string) error {
	key, err := parseID(id)
	if err != nil {
		return err
	}
	if _, err := l.store.Layer(key); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, l.opts.MountTimeout.Duration,
		fmt.Errorf("no index after %s, see mount_timeout", l.opts.MountTimeout.Duration))
	defer cancel()
	places := l.places(labels)
	missing, err := l.missing(others(labels))
	if err != nil {
		return err
	}
	for _, d := range missing {
		l.ahead.start(d, func() *blob.Blob { return l.line.Open(d, places...) })
	}
	b := l.line.Open(key.Blob, places...)
	tail, size, err := l.ahead.take(ctx, key.Blob, b)
	if err != nil {
		return err
	}
	if err = l.store.Add(ctx, key, size, tail, b.With(blob.Wanted).Range); err == nil || ctx.Err() != nil {
		return err
	}
	// What came may not be what the registry has.
	if tail, size, err2 := b.Tail(ctx, tailSize); err2 == nil {
		return l.store.Add(ctx, key, size, tail, b.With(blob.Wanted).Range)
	}
	return err
}

// missing leaves out the blobs that are here as layers.
func (l *Layers) missing(blobs []digest.Digest) ([]digest.Digest, error) {
	keys, err := l.store.Keys()
	return slices.DeleteFunc(blobs, func(d digest.Digest) bool {
		return slices.ContainsFunc(keys, func(k store.Key) bool { return k.Blob == d })
	}), err
}

// Renew tells of another place for a layer, or of other credentials.
func (l *Layers) Renew(id string, labels map[string]string) {
	l.mu.Lock()
	open := l.open[id]
	l.mu.Unlock()
	if open != nil {
		open.renew(l.places(labels))
	}
}

// Mount shows a layer in a directory.
func (l *Layers) Mount(id, dir string, labels map[string]string) error {
	if err := lazyfs.Clear(dir); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	layer, err := l.layer(id, labels)
	if err != nil {
		return err
	}
	server, err := lazyfs.Mount(dir, layer, lazyfs.Options{UserXattr: l.opts.UserXattr, NoPassthrough: l.opts.noPassthrough()})
	if err != nil {
		return err
	}
	layer.mounts++
	l.mounts[dir] = mounted{id: id, server: server}
	return nil
}

// layer returns the layer with this ID, which begins to fill up. Call it with
// the lock held.
func (l *Layers) layer(id string, labels map[string]string) (*layer, error) {
	if open := l.open[id]; open != nil {
		open.renew(l.places(labels))
		return open, nil
	}
	key, err := parseID(id)
	if err != nil {
		return nil, err
	}
	stored, err := l.store.Layer(key)
	if err != nil {
		return nil, err
	}
	open := newLayer(stored, l.line.Open(key.Blob, l.places(labels)...), lasting(labels), l.calm)
	l.open[id] = open
	open.start(l.opts.Config)
	return open, nil
}

// Unmount ends a mount, and the fetching of its layer with its last one.
func (l *Layers) Unmount(dir string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	m, ok := l.mounts[dir]
	if !ok {
		return fmt.Errorf("no layer is mounted in %s", dir)
	}
	if err := m.server.Unmount(); err != nil {
		return err
	}
	delete(l.mounts, dir)
	layer := l.open[m.id]
	if layer.mounts--; layer.mounts == 0 {
		layer.stop()
		delete(l.open, m.id)
	}
	return nil
}

// Usage is what is here of a layer.
func (l *Layers) Usage(id string) (snapshots.Usage, error) {
	key, err := parseID(id)
	if err != nil {
		return snapshots.Usage{}, err
	}
	stored, err := l.store.Layer(key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	stats := stored.Stats()
	return snapshots.Usage{Inodes: int64(stored.Nodes()), Size: stats.Disk}, nil
}

// Layers are the IDs of all that are on disk.
func (l *Layers) Layers() ([]string, error) {
	keys, err := l.store.Keys()
	ids := make([]string, len(keys))
	for i, key := range keys {
		ids[i] = idOf(key)
	}
	return ids, err
}

// Remove frees the disk.
func (l *Layers) Remove(id string) error {
	key, err := parseID(id)
	if err != nil {
		return err
	}
	return l.store.Remove(key)
}

// Close ends everything that goes on. What was fetched stays.
func (l *Layers) Close() error {
	l.ahead.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, open := range l.open {
		open.stop()
		delete(l.open, id)
	}
	return l.store.Close()
}

// patience is how long what was fetched ahead of its use is kept.
const patience = time.Minute
