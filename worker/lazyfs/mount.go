package lazyfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// fsName is what a mount is called in /proc/mounts.
	fsName = "lazyfs"
	// Type is the filesystem type of a mount.
	Type = "fuse." + fsName
)

// mount returns the kernel's end of a new mount.
func mount(dir string) (*os.File, error) {
	const flags = unix.O_RDWR | unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := unix.Open("/dev/fuse", flags, 0)
	if err != nil {
		err = fmt.Errorf("open /dev/fuse, which the kernel's module fuse makes: %w", err)
		// A container engine makes a directory of a device that is not there.
		return nil, unavailableIf(err, unix.ENOENT, unix.EISDIR, unix.ENODEV, unix.ENXIO, unix.EPERM, unix.EACCES)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d,allow_other,default_permissions",
		fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxRead)
	err = unix.Mount(fsName, dir, Type, unix.MS_RDONLY, options)
	if err == nil {
		return os.NewFile(uintptr(fd), "/dev/fuse"), nil
	}
	unix.Close(fd)
	if errors.Is(err, unix.EPERM) {
		return fusermount(dir)
	}
	// EINVAL is for another device, or one of another user namespace.
	return nil, unavailableIf(err, unix.ENODEV, unix.ENOSYS, unix.EACCES, unix.EINVAL)
}

// detach takes a mount from its directory even if it is in use.
func detach(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EPERM) {
		return fuserunmount(dir)
	}
	return err
}

// Clear takes away what dead daemons left mounted at a directory, however often:
// mounts that nobody serves. Others stay. A directory that does not exist is
// clear.
func Clear(dir string) error {
	for {
		// Unlike stat(2), this is never answered from memory.
		err := unix.Statfs(dir, new(unix.Statfs_t))
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if errors.Is(err, unix.ENOTCONN) {
			err = detach(dir)
		}
		if err != nil {
			return fmt.Errorf("clear %s of dead mounts: %w", dir, err)
		}
	}
}
