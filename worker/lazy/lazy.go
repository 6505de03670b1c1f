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
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/disk"
	"github.com/opencontainers/go-digest"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/blob"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazyfs"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazyfs/watchdog"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/snapshot"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// Layers are all lazy layers of a worker. It is safe for concurrent use.
type Layers struct {
	opts  Options
	root  string
	line  *blob.Line
	store *store.Store
	ahead *lookahead
	gate  *gate
	space *diskSpace
	access
	*metrics

	mu      sync.Mutex
	blobs   map[string]*blob.Blob // of mounted and announced layers, by ID
	mounted map[string]*layer     // by ID
	mounts  map[string]*mount     // by directory

	watchdog *watchdog.Watchdog // of the mounts; nil before the first one

	operations map[*operation]struct{} // that are shared
}

// A mount is a layer that is served in a directory, or the files of one that was
// unpacked there, or nothing but a place for either.
type mount struct {
	id       string
	key      store.Key
	origin   Origin
	server   *lazyfs.Server
	unpacked *unpacked
	empty    bool // unpacked, the layer has no files
}

// shows says whether what is in the directory is the layer.
func (m *mount) shows() bool {
	return m != nil && (m.unpacked != nil || m.empty || m.server != nil && m.server.Mounted())
}

// Options says how layers are fetched. Hosts and Alive are required.
type Options struct {
	// Hosts knows how to reach the registries.
	Hosts Hosts
	// Alive says whether a session is still there to be asked for credentials.
	Alive func(session string) bool
	// UserXattr marks opaque directories for an overlayfs that is mounted in a
	// user namespace.
	UserXattr bool
	Limits
	Config
}

var _ snapshot.Lazy = (*Layers)(nil)

// New opens the layers below root.
func New(root string, opts Options) (*Layers, error) {
	opts.Config = opts.Config.withDefaults()
	m, g := newMetrics(), &gate{}
	waited := func(d time.Duration) { m.waited(d); g.waits() }
	s := &diskSpace{dir: root, limits: opts.Limits, disk: func() (disk.DiskStat, error) { return disk.GetDiskStat(root) }}
	st, err := store.Open(filepath.Join(root, "layers"), store.Options{Waited: waited, Pace: g.await, CheckSpace: s.check, Spare: s.spare})
	if err != nil {
		return nil, err
	}
	line := blob.NewLine(blob.Options{
		Connections:   opts.Connections,
		BytesInFlight: opts.BytesInFlight,
		Deadline:      opts.Deadline.Duration,
		Stall:         opts.Stall.Duration,
		TempDir:       root, // which the store has made
		CheckSpace:    s.check,
	})
	l := &Layers{
		opts: opts, root: root, line: line, store: st, ahead: newLookahead(), gate: g, space: s, metrics: m,
		access: access{alive: opts.Alive, grants: map[grant]struct{}{}, homes: map[string][]place{}},
		blobs:  map[string]*blob.Blob{}, mounted: map[string]*layer{}, mounts: map[string]*mount{},
		operations: map[*operation]struct{}{},
	}
	s.used = l.used
	return l, nil
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
//
// Who asks stands in the labels of the context's call, see [WithLabels]. Without
// any, it is for those that the layer was announced to.
func (l *Layers) Fetch(ctx context.Context, id string) error {
	key, err := parseID(id)
	if err != nil {
		return err
	}
	return l.patiently(ctx, "index", func(ctx context.Context) error { return l.fetchCalled(ctx, id, key) })
}

// patiently bounds how long a registry may hold up a step before it begins.
func (l *Layers) patiently(ctx context.Context, what string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, l.opts.MountTimeout.Duration,
		fmt.Errorf("no %s after %s, see mount_timeout", what, l.opts.MountTimeout.Duration))
	defer cancel()
	err := do(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

func (l *Layers) fetchCalled(ctx context.Context, id string, key store.Key) error {
	call, ok := callLabels(ctx)
	of, notOurs := keyOf(call)
	own := ok && notOurs == nil && of == key
	stored, err := l.store.Layer(key)
	if err == nil && (!own || stored.Complete()) {
		return nil
	}
	places := withoutSuccessors(l.places(call))
	switch {
	case err == nil: // the place is kept with a snapshot, and is a home when it is restored
		return l.proveAt(ctx, key, places)
	case !ok:
		return l.fetchFrom(ctx, key, l.blobOf(id, key.Blob))
	case !own: // the layer lies below the one that the call is for, often in the same repository
		err := l.fetchFrom(ctx, key, l.blobOf(id, key.Blob))
		if err == nil || ctx.Err() != nil {
			return err
		}
		if again := l.fetch(ctx, key, places); again != nil {
			return errors.Join(err, again)
		}
		return nil
	}
	missing, err := l.missing(others(call))
	if err != nil {
		return err
	}
	for _, d := range missing {
		l.ahead.start(l.line, d, places)
	}
	return l.fetch(ctx, key, places)
}

// fetch makes the index of a layer, if there is none, of the TOC that some sources
// serve. If there is one, it compares the digest all the same: the sources then
// have shown that they have the layer.
func (l *Layers) fetch(ctx context.Context, key store.Key, sources []blob.Source) error {
	b := l.line.Open(key.Blob, sources...)
	tail, size, own, err := l.ahead.take(ctx, key.Blob, sources)
	if err == nil && tail == nil {
		tail, size, err = b.Tail(ctx, tailSize)
	}
	if err == nil {
		err = l.add(ctx, key, b, tail, size)
	}
	if err != nil {
		return err
	}
	l.access.served(idOf(key), sources)
	if !own {
		return l.prove(ctx, key, sources)
	}
	return nil
}

// fetchFrom is fetch for sources that have shown it.
func (l *Layers) fetchFrom(ctx context.Context, key store.Key, b *blob.Blob) error {
	tail, size, err := b.Tail(ctx, tailSize)
	if err != nil {
		return err
	}
	return l.add(ctx, key, b, tail, size)
}

func (l *Layers) add(ctx context.Context, key store.Key, b *blob.Blob, tail []byte, size int64) error {
	for tries := 1; ; tries++ {
		err := l.store.Add(ctx, key, size, tail, b.With(blob.Wanted).Range)
		if err == nil || ctx.Err() != nil || tries == maxTries {
			return err
		}
		// What came may not be what the registry has.
		var again error
		if tail, size, again = b.Tail(ctx, tailSize); again != nil {
			return err
		}
	}
}

// maxTries is how often the index of a layer is made of what has come.
const maxTries = 3

// missing leaves out the blobs that are here as layers.
func (l *Layers) missing(blobs []digest.Digest) ([]digest.Digest, error) {
	keys, err := l.store.Keys()
	return slices.DeleteFunc(blobs, func(d digest.Digest) bool {
		return slices.ContainsFunc(keys, func(k store.Key) bool { return k.Blob == d })
	}), err
}

// Announce tells the layer of a snapshot of a build that is about to use it. The error
// of one that may not read what is missing of it names the host and the cause.
func (l *Layers) Announce(ctx context.Context, labels map[string]string) error {
	key, err := keyOf(labels)
	if err != nil {
		return nil //nolint:nilerr // it is not ours
	}
	if _, ok := labels[snapshot.UnpackedLabel]; ok {
		return nil // as with a layer that was pulled
	}
	id, places := idOf(key), l.places(labels)
	l.mu.Lock()
	mounted := l.mounted[id]
	l.mu.Unlock()
	complete := mounted != nil && mounted.Complete()
	if mounted == nil {
		stored, err := l.store.Layer(key) // it may be one that cannot be mounted here
		complete = err == nil && stored.Complete()
	}
	if !complete {
		prove := func(ctx context.Context) error { return l.prove(ctx, key, withoutSuccessors(places)) }
		if err := l.patiently(ctx, "answer", prove); err != nil {
			return fmt.Errorf("%s is lazy, and not all here: %w", labels[refLabel], err)
		}
	}
	l.blobOf(id, key.Blob).Add(append(places, l.public(labels)...)...)
	l.mu.Lock()
	defer l.mu.Unlock()
	if mounted := l.mounted[id]; mounted != nil {
		mounted.announced(l.opts.Config)
	}
	return nil
}

// blobOf returns the blob of a layer, with the places that are known of it.
func (l *Layers) blobOf(id string, d digest.Digest) *blob.Blob {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.knownBlob(id, d)
}

// knownBlob is blobOf with the lock held.
func (l *Layers) knownBlob(id string, d digest.Digest) *blob.Blob {
	b := l.blobs[id]
	if b == nil {
		b = l.line.Open(d)
		l.blobs[id] = b
	}
	return b
}

// Mount shows a layer in a directory, unless its files are there. Where it came from
// is known until Unmount, even if it cannot be mounted here. A layer that is mounted
// there is unmounted first, and stays to be unmounted if that fails.
func (l *Layers) Mount(id, dir string, labels map[string]string) error {
	key, err := parseID(id)
	if err != nil {
		return err
	}
	if err := l.unmountServed(dir); err != nil {
		return err
	}
	m := &mount{id: id, key: key, origin: originOf(labels)}
	layer, err := l.toMount(m, dir, labels)
	if layer == nil {
		l.enter(dir, m)
		return err
	}
	l.startWatchdog()
	if m.server, err = lazyfs.Mount(dir, layer, l.fsOptions()); err != nil {
		defer l.release(id)
		if lazyfs.Empty(layer) {
			m.empty = true
			err = lazyfs.Unpack(context.Background(), dir, layer, l.fsOptions(), l.space.check)
		}
	}
	l.enter(dir, m)
	return err
}

// toMount clears a directory and returns the layer that is to be mounted there, nil if
// its files are there.
func (l *Layers) toMount(m *mount, dir string, labels map[string]string) (*layer, error) {
	err := lazyfs.Clear(dir)
	if err == nil {
		m.unpacked, err = unpackedIn(dir)
	}
	if err != nil || m.unpacked != nil {
		return nil, err
	}
	return l.acquire(m.id, labels)
}

// startWatchdog starts the watchdog of the mounts, unless there is one.
func (l *Layers) startWatchdog() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watchdog != nil {
		return
	}
	dir, err := filepath.EvalSymlinks(l.root) // as the kernel lists mounts
	if err == nil {
		l.watchdog, err = watchdog.Start(lazyfs.Type, dir, func(err error) {
			bklog.L.Warn("the watchdog of lazy mounts was killed")
			warnUnwatched(err)
		})
	}
	warnUnwatched(err)
}

// warnUnwatched warns that a watchdog has not started.
func warnUnwatched(err error) {
	if err != nil {
		bklog.L.WithError(err).Warn("the daemon may not end when it is killed while it reads lazy layers")
	}
}

func (l *Layers) fsOptions() lazyfs.Options {
	return lazyfs.Options{UserXattr: l.opts.UserXattr, NoPassthrough: l.opts.noPassthrough()}
}

func (l *Layers) enter(dir string, m *mount) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mounts[dir] = m
}

// acquire returns the layer with this ID for one more mount.
func (l *Layers) acquire(id string, labels map[string]string) (*layer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	layer, err := l.layer(id, labels)
	if err != nil {
		return nil, err
	}
	layer.mounts++
	l.mounted[id] = layer
	return layer, nil
}

// release ends a mount of a layer, and with its last one the fetching.
func (l *Layers) release(id string) {
	l.mu.Lock()
	layer := l.mounted[id]
	if layer == nil { // Close was first
		l.mu.Unlock()
		return
	}
	layer.mounts--
	last := layer.mounts == 0
	if last {
		delete(l.mounted, id)
		l.forgetBlob(id)
		l.closed.add(layer.Stats())
	}
	l.mu.Unlock()
	if last {
		layer.stop()
	}
}

// forgetBlob forgets the places of a layer that is not mounted, unless it is to be
// unpacked. Call it with the lock held.
func (l *Layers) forgetBlob(id string) {
	for _, m := range l.mounts {
		if m.id == id && !m.shows() && m.server == nil {
			return
		}
	}
	if l.mounted[id] == nil {
		delete(l.blobs, id)
	}
}

// Mounted says whether a layer is still shown in a directory.
func (l *Layers) Mounted(dir string) bool {
	l.mu.Lock()
	m := l.mounts[dir]
	l.mu.Unlock()
	return m.shows()
}

// At returns the blob of the layer that is shown in a directory.
func (l *Layers) At(dir string) (blob digest.Digest, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m, ok := l.mounts[dir]
	if !ok {
		return "", false
	}
	return m.key.Blob, true
}

// layer returns the layer with this ID. It begins to fill up with the first
// build that is announced. Call it with the lock held.
func (l *Layers) layer(id string, labels map[string]string) (*layer, error) {
	if mounted := l.mounted[id]; mounted != nil {
		return mounted, nil
	}
	key, err := parseID(id)
	if err != nil {
		return nil, err
	}
	stored, err := l.store.Layer(key)
	if err != nil {
		return nil, err
	}
	l.access.restored(id, l.appendPlace(nil, labels[refLabel], "", ""))
	return newLayer(stored, l.knownBlob(id, key.Blob), originOf(labels), l.gate, l.space), nil
}

// Unmount ends a mount, and the fetching of its layer with its last one.
func (l *Layers) Unmount(dir string) error {
	l.mu.Lock()
	m, ok := l.mounts[dir]
	l.mu.Unlock()
	if !ok {
		return nil
	}
	if m.server != nil {
		if err := m.server.Unmount(); err != nil {
			return err
		}
	}
	l.mu.Lock()
	again := l.mounts[dir] != m // somebody else unmounted it, too
	if !again {
		delete(l.mounts, dir)
		l.forgetBlob(m.id)
	}
	l.mu.Unlock()
	if !again && m.server != nil {
		l.release(m.id)
	}
	return nil
}

// unmountServed is Unmount for a directory of which Mount has made a mount.
func (l *Layers) unmountServed(dir string) error {
	l.mu.Lock()
	m := l.mounts[dir]
	l.mu.Unlock()
	if m == nil || m.server == nil {
		return nil
	}
	return l.Unmount(dir)
}

// Usage is what is here of a layer, unpacked in a directory or not.
func (l *Layers) Usage(id, dir string) (snapshots.Usage, error) {
	l.mu.Lock()
	m := l.mounts[dir]
	l.mu.Unlock()
	if m != nil && m.unpacked != nil {
		return m.unpacked.usage()
	}
	key, err := parseID(id)
	if err != nil {
		return snapshots.Usage{}, err
	}
	stored, err := l.store.Layer(key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	return snapshots.Usage{Inodes: int64(stored.Nodes()), Size: stored.Disk()}, nil
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
	l.access.forget(id)
	return l.store.Remove(key)
}

// Close ends everything that goes on. What was fetched stays.
func (l *Layers) Close() error {
	l.ahead.close()
	l.mu.Lock()
	mounted := slices.Collect(maps.Values(l.mounted))
	clear(l.mounted)
	started := l.watchdog
	l.mu.Unlock()
	for _, layer := range mounted { // which ask for the lock as long as they fetch
		layer.stop()
	}
	if started != nil {
		started.Close()
	}
	return l.store.Close()
}
