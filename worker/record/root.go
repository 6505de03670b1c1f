package record

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/util/bklog"
)

// A rootfs is the root filesystem of a process, where BuildKit has mounted it.
// An overlay is mounted once, and whoever asks gets bind mounts of it: so its
// superblock is at hand without a mount of our own, which a daemon that is
// killed would leave behind.
type rootfs struct {
	dir     string // empty if it is not mounted
	kind    string // of the mount that BuildKit hands out
	release func() error
}

// openRootfs keeps the root filesystem mounted until close.
func openRootfs(ctx context.Context, src executor.Mountable) (*rootfs, error) {
	ref, err := src.Mount(ctx, false)
	if err != nil {
		return nil, err
	}
	mounts, release, err := ref.Mount()
	if err != nil {
		return nil, err
	}
	r := &rootfs{release: release}
	if len(mounts) == 1 {
		r.kind = mounts[0].Type
	}
	if r.kind == "bind" || r.kind == "rbind" {
		r.dir = mounts[0].Source
	}
	return r, nil
}

func (r *rootfs) close(ctx context.Context) {
	if r.release == nil {
		return
	}
	if err := r.release(); err != nil {
		bklog.G(ctx).WithError(err).Error("record: releasing the root filesystem")
	}
}

// layers returns the directories that the root filesystem consists of, the
// topmost first, without the one that the process writes to.
func (r *rootfs) layers() ([]string, error) {
	if r.dir == "" {
		return nil, fmt.Errorf("the root filesystem is of type %q, and only overlayfs can be recorded", r.kind)
	}
	options, err := overlayOptions(r.dir)
	if err != nil {
		return nil, fmt.Errorf("mounts of the root filesystem: %w", err)
	}
	if options == "" {
		return nil, errors.New("the root filesystem is a plain directory, as the native snapshotter makes it, and only overlayfs can be recorded")
	}
	return parseLayers(options)
}
