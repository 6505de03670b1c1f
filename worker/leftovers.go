package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// unmountLeftovers takes away what a killed daemon left mounted of the worker in
// a directory: root filesystems of containers, and those that BuildKit mounts
// for itself among the temporary files. They hold lazy layers that answer no
// more.
func unmountLeftovers(dir string) error {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !isLeftover(m, dir), false
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s, which an earlier run left: %w", m.Mountpoint, err))
		} else if isTemporary(m) {
			errs = append(errs, os.Remove(m.Mountpoint))
		}
	}
	return errors.Join(errs...)
}

func isLeftover(m *mountinfo.Info, dir string) bool {
	if strings.HasPrefix(m.Mountpoint, filepath.Join(dir, "executor")+"/") {
		return true
	}
	// Other daemons may have theirs beside ours: the directories that a mount
	// shows say whose it is, or that nobody answers for it.
	return isTemporary(m) && (strings.Contains(m.VFSOptions, dir+"/") || strings.Contains(m.Root, dir+"/") || isDead(m))
}

func isTemporary(m *mountinfo.Info) bool {
	return filepath.Dir(m.Mountpoint) == filepath.Clean(os.TempDir()) && strings.HasPrefix(filepath.Base(m.Mountpoint), "buildkit-mount")
}

func isDead(m *mountinfo.Info) bool {
	var st unix.Stat_t
	return errors.Is(unix.Stat(m.Mountpoint, &st), unix.ENOTCONN)
}
