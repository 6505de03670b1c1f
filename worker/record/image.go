package record

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// image finds files in the layers below the root filesystem.
type image struct {
	layers []int // directories opened with O_PATH, topmost first
}

func openImage(dirs []string) (*image, error) {
	im := &image{}
	for _, dir := range dirs {
		fd, err := unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC})
		if err != nil {
			im.close()
			if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
				return nil, fmt.Errorf("openat2, which takes Linux 5.6: %w", err)
			}
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		im.layers = append(im.layers, fd)
	}
	return im, nil
}

func (im *image) close() {
	for _, fd := range im.layers {
		unix.Close(fd)
	}
}

// open opens what the topmost layer with path has there. A path has no symlinks,
// as the kernel told it: one in a layer is a file of that layer, and following
// it could lead to the host.
func (im *image) open(path string, flags uint64) (fd int, ok bool) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	for _, layer := range im.layers {
		if fd, err := unix.Openat2(layer, path, &how); err == nil {
			return fd, true
		}
	}
	return -1, false
}

// find tells of the regular file at path.
func (im *image) find(path string) (st unix.Stat_t, ok bool) {
	fd, ok := im.open(path, unix.O_PATH)
	if !ok {
		return st, false
	}
	defer unix.Close(fd)
	err := unix.Fstat(fd, &st)
	return st, err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// deleted is what the kernel adds to the path of a file that is gone by the time
// its event is read. The file's own count of links does not tell: an overlay
// answers with that of the layer below.
const deleted = " (deleted)"

// seenAs finds the file at the path that an event has, and tells its name in the
// image.
func (im *image) seenAs(path string) (name string, st unix.Stat_t, ok bool) {
	if st, ok = im.find(path); ok {
		return path, st, true
	}
	name, gone := strings.CutSuffix(path, deleted)
	if gone {
		st, ok = im.find(name)
	}
	return name, st, ok
}

func (im *image) has(path string) bool {
	_, _, ok := im.seenAs(path)
	return ok
}

// devices returns the filesystems of the layers whose files are read through
// the page cache in a way that the tracepoints know. On others (tmpfs, ZFS) they
// tell nothing, or (btrfs) name another device than stat(2) does, or (FUSE,
// overlay) reads may be passed through to files elsewhere.
func (im *image) devices() []uint32 {
	var devices []uint32
	for _, fd := range im.layers {
		var st unix.Stat_t
		var fs unix.Statfs_t
		if unix.Fstat(fd, &st) != nil || unix.Fstatfs(fd, &fs) != nil {
			continue
		}
		if fs.Type != unix.EXT4_SUPER_MAGIC && fs.Type != unix.XFS_SUPER_MAGIC {
			continue
		}
		if device := kernelDevice(st.Dev); !slices.Contains(devices, device) {
			devices = append(devices, device)
		}
	}
	return devices
}
