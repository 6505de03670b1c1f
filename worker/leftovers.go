package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// withoutLeftovers opens snapshots once nothing runs and nothing is mounted any
// more of the worker in whose directory they are.
func withoutLeftovers(cfg config.OCIConfig, open func(string) (snapshots.Snapshotter, error)) func(string) (snapshots.Snapshotter, error) {
	return func(dir string) (snapshots.Snapshotter, error) {
		dirOfWorker := filepath.Dir(dir)
		// BuildKit makes a directory for each container, with a file in it.
		files, _ := filepath.Glob(filepath.Join(dirOfWorker, "executor", "*", "config.json"))
		for _, file := range files {
			endLeftover(cfg, filepath.Base(filepath.Dir(file)))
		}
		if err := unmountLeftovers(dirOfWorker); err != nil {
			return nil, err
		}
		for _, file := range files {
			// Nothing is mounted there any more if it is empty.
			if os.Remove(filepath.Join(filepath.Dir(file), "rootfs")) == nil {
				_ = os.RemoveAll(filepath.Dir(file))
			}
		}
		if err := removeIngests(dirOfWorker); err != nil {
			bklog.L.WithError(err).Warn("parts of blobs that an earlier run left may stay on disk")
		}
		s, err := open(dir)
		if err != nil {
			return nil, err
		}
		if err := collect(s); err != nil {
			bklog.L.WithError(err).Warn("directories of snapshots that an earlier run left may stay on disk")
		}
		return s, nil
	}
}

// removeIngests removes the parts of blobs that were being written when the daemon
// ended. Few are ever asked for again, and garbage collection keeps those that the
// database knows. The next pull of such a blob begins anew.
func removeIngests(dirOfWorker string) error {
	parts, err := filepath.Glob(filepath.Join(dirOfWorker, "content", "ingest", "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, part := range parts {
		errs = append(errs, os.RemoveAll(part))
	}
	return errors.Join(errs...)
}

// collect removes the directories that no snapshot has: one that was removed or
// not yet made when the daemon was killed. Garbage collection would look for them
// after the next snapshot is removed only.
func collect(s snapshots.Snapshotter) error {
	cleaner, ok := s.(snapshots.Cleaner)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), leftoverTimeout)
	defer cancel()
	err := cleaner.Cleanup(ctx)
	if errdefs.IsNotFound(err) || errdefs.IsNotImplemented(err) {
		return nil // there are no snapshots, or another process looks after them
	}
	return err
}

// leftoverTimeout is how long a start waits for another program to remove what an
// earlier run left.
const leftoverTimeout = 30 * time.Second

// endLeftover ends a container that a killed daemon may have left running. It
// would go on writing to snapshots that are used again. One that cannot be ended
// is no reason not to start.
func endLeftover(cfg config.OCIConfig, container string) {
	name, err := runtime(cfg)
	if err != nil {
		return // the worker will say so
	}
	ctx, cancel := context.WithTimeout(context.Background(), leftoverTimeout)
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, "delete", "--force", container).CombinedOutput(); err != nil {
		bklog.L.WithError(err).Warnf("container %s, which an earlier run left, may still run: %s", container, out)
	}
}

// deleteOrphans deletes the leases of snapshots that no record of BuildKit's cache
// tells of, so that the next garbage collection takes them. A daemon leaves some
// when it is killed: the cache leases a snapshot before it records it, and looks
// at its records only when it starts.
func deleteOrphans(ctx context.Context, manager leases.Manager, records *metadata.Store) error {
	all, err := manager.List(ctx)
	if err != nil {
		return err
	}
	for _, lease := range all {
		// The cache's leases bear the name of the record, and what they are for
		// behind it, and are flat; nobody else's are.
		record, _, _ := strings.Cut(lease.ID, "-")
		_, flat := lease.Labels["containerd.io/gc.flat"]
		if _, ok := records.Get(record); ok || !flat {
			continue
		}
		if err := manager.Delete(ctx, lease); err != nil {
			return err
		}
	}
	return nil
}

// unmountLeftovers takes away what a killed daemon left mounted of the worker in
// a directory: root filesystems of containers, and those that BuildKit and
// containerd mount for themselves among the temporary files. Lazy layers below
// them answer no more, and other snapshots could never be removed.
func unmountLeftovers(dir string) error {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	at := locate(dir, mounts)
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if !at.isLeftover(m) {
			continue
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s, which an earlier run left: %w", m.Mountpoint, err))
		} else if isTemporary(m) {
			errs = append(errs, os.Remove(m.Mountpoint))
		}
	}
	return errors.Join(errs...)
}

// A place is where a directory is, as mounts tell it.
type place struct {
	dirs         []string // as the daemon says it, and without symbolic links
	major, minor int      // of its filesystem
	root         string   // its path in that
}

func locate(dir string, mounts []*mountinfo.Info) place {
	at := place{dirs: []string{dir}}
	if resolved, err := filepath.EvalSymlinks(dir); err == nil && resolved != dir {
		at.dirs = append(at.dirs, resolved)
		dir = resolved
	}
	var over *mountinfo.Info // the last of the longest that are above dir
	for _, m := range mounts {
		if isBelow(dir, m.Mountpoint) && (over == nil || len(m.Mountpoint) >= len(over.Mountpoint)) {
			over = m
		}
	}
	if over != nil {
		rest, _ := filepath.Rel(over.Mountpoint, dir)
		at.major, at.minor, at.root = over.Major, over.Minor, filepath.Join(over.Root, rest)
	}
	return at
}

// isBelow says whether a path is a directory or something in it.
func isBelow(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

func (p place) isLeftover(m *mountinfo.Info) bool {
	for _, dir := range p.dirs {
		if strings.HasPrefix(m.Mountpoint, filepath.Join(dir, "executor")+"/") {
			return true
		}
	}
	// Other daemons may have theirs beside ours: the directories that a mount
	// shows say whose it is, or that nobody answers for it.
	return isTemporary(m) && (p.shows(m) || isDead(m))
}

// shows says whether a mount shows something of the directory: layers of an
// overlay, or a bind mount, whose root is told within its filesystem.
func (p place) shows(m *mountinfo.Info) bool {
	for _, dir := range p.dirs {
		if strings.Contains(m.VFSOptions, "="+dir+"/") || strings.Contains(m.VFSOptions, ":"+dir+"/") {
			return true
		}
	}
	return m.Major == p.major && m.Minor == p.minor && p.root != "" && strings.HasPrefix(m.Root, p.root+"/")
}

// isTemporary says whether a mount has a name that BuildKit or containerd gives to
// those among the temporary files.
func isTemporary(m *mountinfo.Info) bool {
	dir, name := os.TempDir(), filepath.Base(m.Mountpoint)
	switch {
	case strings.HasPrefix(name, "buildkit-mount"):
	case strings.HasPrefix(name, "containerd-mount"):
		dir = cmp.Or(os.Getenv("XDG_RUNTIME_DIR"), dir)
	default:
		return false
	}
	// The kernel tells mount points without symbolic links.
	if resolved, err := filepath.EvalSymlinks(dir); err == nil {
		dir = resolved
	}
	return filepath.Dir(m.Mountpoint) == filepath.Clean(dir)
}

func isDead(m *mountinfo.Info) bool {
	var st unix.Stat_t
	return errors.Is(unix.Stat(m.Mountpoint, &st), unix.ENOTCONN)
}
