package lazy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs"
	"github.com/moby/sys/mountinfo"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazyfs"
)

// unpacked are the files of a layer that could not be mounted. They do not change.
type unpacked struct {
	usage func() (snapshots.Usage, error)
}

// unpackedIn returns what was unpacked in a directory, nil if nothing was. What somebody
// has mounted on it is no layer.
func unpackedIn(dir string) (*unpacked, error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(names) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if mounted, err := mountinfo.Mounted(dir); err != nil || mounted {
		return nil, err
	}
	return &unpacked{usage: sync.OnceValues(func() (snapshots.Usage, error) {
		usage, err := fs.DiskUsage(context.Background(), dir)
		return snapshots.Usage(usage), err
	})}, nil
}

// Unpacking tells those who watch a build why layers are unpacked.
func (l *Layers) Unpacking(ctx context.Context, labels map[string]string, why error) {
	tell(ctx, fmt.Sprintf("layer %s of %s cannot be mounted, it and others like it are unpacked: %v", labels[digestLabel], labels[refLabel], why))
}

// Unpack writes the files of a layer into a directory. What is missing of them is
// fetched with the credentials of the builds that it is announced to.
func (l *Layers) Unpack(ctx context.Context, id, dir string, labels map[string]string) error {
	layer, err := l.acquire(id, labels)
	if err != nil {
		return err
	}
	defer l.release(id)
	return lazyfs.Unpack(ctx, dir, layer, l.fsOptions(), l.space.check)
}

// Unpacked says whether the files of a layer stand in a directory.
func (l *Layers) Unpacked(dir string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.mounts[dir]
	return m != nil && m.unpacked != nil
}
