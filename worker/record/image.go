package record

import (
	"slices"

	"golang.org/x/sys/unix"
)

// image finds files in the layers below the root filesystem.
type image struct {
	layers []int // directories opened with O_PATH, topmost first
}

func openImage(dirs []string) (*image, error) {
	im := &image{}
	for _, dir := range dirs {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			im.close()
			return nil, err
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

// find returns what the topmost layer with path has there. A path has no
// symlinks, as the kernel told it: one in a layer is a file of that layer, and
// following it could lead to the host.
func (im *image) find(path string) (unix.Stat_t, bool) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	var st unix.Stat_t
	for _, layer := range im.layers {
		fd, err := unix.Openat2(layer, path, &how)
		if err != nil {
			continue
		}
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
		if err == nil {
			return st, st.Mode&unix.S_IFMT == unix.S_IFREG
		}
	}
	return st, false
}

// devices returns the filesystems of the layers whose files have pages of their
// own. A FUSE filesystem may pass reads through to files elsewhere.
func (im *image) devices() []uint32 {
	var devices []uint32
	for _, fd := range im.layers {
		var st unix.Stat_t
		var fs unix.Statfs_t
		if unix.Fstat(fd, &st) != nil || unix.Fstatfs(fd, &fs) != nil || fs.Type == unix.FUSE_SUPER_MAGIC {
			continue
		}
		if device := kernelDevice(st.Dev); !slices.Contains(devices, device) {
			devices = append(devices, device)
		}
	}
	return devices
}
