package record

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// discard deletes what a workload wrote, once it has ended. BuildKit takes the
// root filesystem that a command leaves for a result and keeps it in the build
// cache. Nobody asks for this one, and the rest of the build may need the disk.
func (r *rootfs) discard() error {
	options, err := overlayOptions(r.dir)
	if err != nil {
		return fmt.Errorf("mounts of the root filesystem: %w", err)
	}
	_, upper := overlayDirs(options)
	if upper == "" {
		return errors.New("the root filesystem has no directory of its own for what is written")
	}
	entries, err := os.ReadDir(upper)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(upper, e.Name())))
	}
	return err
}
