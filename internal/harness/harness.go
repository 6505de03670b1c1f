// Package harness starts the servers that the daemon is tested and measured
// with: a registry, build daemons, containerd with the stock stargz-snapshotter,
// and any other process. The integration tests and the tools in hack use it. It
// knows nothing of package testing, builds no images and checks nothing.
//
// Each server has its files, its log among them, below a directory that the
// caller gives and removes, by [RemoveAll]. A context bounds the start of a
// server. It runs until it is stopped, or until this process ends.
package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/moby/sys/mountinfo"
)

// Tools is the directory with the programs that hack/tools built.
type Tools string

// Path returns the program that hack/tools built, or else the name, which is
// looked up in $PATH.
func (t Tools) Path(name string) string {
	built := filepath.Join(string(t), name)
	if _, err := os.Stat(built); err == nil {
		return built
	}
	return name
}

// RemoveAll removes a directory, and first unmounts what is mounted below it.
func RemoveAll(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	// The last one mounted may lie on or below an earlier one.
	for _, m := range slices.Backward(mounts) {
		err := syscall.Unmount(m.Mountpoint, syscall.MNT_DETACH)
		gone := errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOENT) // meanwhile, with another mount
		if err != nil && !gone {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return os.RemoveAll(dir)
}
