package lazyfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// Unpack writes the files of a layer into an empty directory, where a mount is not
// possible. They are those that a mount shows. It waits for contents that are not
// here, as a reader of a mount does. CheckSpace is asked before each file and each piece
// of its contents whether the disk has room for so many bytes.
func Unpack(ctx context.Context, dir string, layer Layer, o Options, checkSpace func(bytes int64) error) error {
	u := &unpacker{
		layer: layer, xattrs: xattrsOf(layer, o.UserXattr), checkSpace: checkSpace, root: dir,
		places: map[store.Node]place{}, piece: make([]byte, maxRead),
	}
	return u.fill(ctx, store.Root, dir)
}

// Empty says whether Unpack would make no file.
func Empty(layer Layer) bool {
	for _, e := range layer.Entries(store.Root, 0) {
		if a := layer.Attr(e.Node); !isDevice(a) || isWhiteout(a) || !userns.RunningInUserNS() {
			return false
		}
	}
	return true
}

type unpacker struct {
	layer      Layer
	xattrs     xattrs
	checkSpace func(bytes int64) error
	root       string
	places     map[store.Node]place // of directories, and the first of each file with several links
	piece      []byte
}

// A place is an entry of a directory. A path could take 4096 bytes for each file of
// a hostile layer.
type place struct {
	dir store.Node
	at  int32 // among the entries
}

// path returns the path of a file that has a place.
func (u *unpacker) path(n store.Node) string {
	var names []string
	for n != store.Root {
		p := u.places[n]
		for _, e := range u.layer.Entries(p.dir, int(p.at)) {
			names = append(names, e.Name)
			break
		}
		n = p.dir
	}
	slices.Reverse(names)
	return filepath.Join(u.root, filepath.Join(names...))
}

// fill makes what is in a directory, and then gives the directory its attributes.
func (u *unpacker) fill(ctx context.Context, n store.Node, dir string) error {
	for i, e := range u.layer.Entries(n, 0) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := u.create(ctx, e.Node, place{n, int32(i)}, filepath.Join(dir, e.Name)); err != nil {
			return err
		}
	}
	return u.describe(n, dir)
}

func (u *unpacker) create(ctx context.Context, n store.Node, at place, path string) error {
	if err := u.checkSpace(inodeSize); err != nil {
		return err
	}
	a := u.layer.Attr(n)
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		u.places[n] = at
		return u.fill(ctx, n, path)
	}
	if _, ok := u.places[n]; ok {
		return os.Link(u.path(n), path)
	}
	var err error
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		err = u.copy(ctx, n, a.Size, path)
	case unix.S_IFLNK:
		err = os.Symlink(u.layer.Readlink(n), path)
	default:
		err = unix.Mknod(path, a.Mode, int(a.Rdev))
		if errors.Is(err, unix.EPERM) && userns.RunningInUserNS() && isDevice(a) && !isWhiteout(a) {
			return nil // as when a layer is pulled
		}
	}
	if err != nil {
		return err
	}
	if a.Links > 1 {
		u.places[n] = at
	}
	return u.describe(n, path)
}

func (u *unpacker) copy(ctx context.Context, n store.Node, size int64, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	for off := int64(0); err == nil && off < size; {
		if err = u.checkSpace(size - off); err != nil {
			break // others may have written since the last piece
		}
		var read int
		read, err = u.layer.ReadAt(ctx, n, u.piece[:min(size-off, int64(len(u.piece)))], off)
		if err == io.EOF && int64(read) == size-off {
			err = nil
		}
		if err == nil {
			_, err = f.Write(u.piece[:read])
		}
		off += int64(read)
	}
	return errors.Join(err, f.Close())
}

// inodeSize is what a file takes of the disk besides its contents, or a little less:
// a directory has a block.
const inodeSize int64 = 4096

func isDevice(a store.Attr) bool {
	kind := a.Mode & unix.S_IFMT
	return kind == unix.S_IFCHR || kind == unix.S_IFBLK
}

// isWhiteout says whether a file takes one of a lower layer away. Where such a file
// cannot be made, as in a user namespace before Linux 5.8, what is left of the layer
// is another one.
func isWhiteout(a store.Attr) bool { return a.Mode&unix.S_IFMT == unix.S_IFCHR && a.Rdev == 0 }

// mayHaveXattrs says whether Linux permits user.* of a file of this kind.
func mayHaveXattrs(mode uint32) bool {
	kind := mode & unix.S_IFMT
	return kind == unix.S_IFREG || kind == unix.S_IFDIR
}

// describe sets what stat(2) and listxattr(2) tell of a file.
func (u *unpacker) describe(n store.Node, path string) error {
	a := u.layer.Attr(n)
	if err := os.Lchown(path, int(a.UID), int(a.GID)); err != nil {
		return err
	}
	symlink := a.Mode&unix.S_IFMT == unix.S_IFLNK
	if !symlink { // after the owner, whose change takes setuid away
		if err := unix.Chmod(path, a.Mode&^unix.S_IFMT); err != nil {
			return &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	for name, value := range u.xattrs.of(n) {
		if strings.HasPrefix(name, "trusted.") && name != u.xattrs.opaque() {
			continue // as when a layer is pulled
		}
		err := unix.Lsetxattr(path, name, value, 0)
		if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) && !mayHaveXattrs(a.Mode) {
			continue // the same
		}
		if err != nil {
			return fmt.Errorf("extended attribute %s of %s: %w", name, path, err)
		}
	}
	mtime, err := unix.TimeToTimespec(a.Mtime)
	if err == nil {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{mtime, mtime}, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return &os.PathError{Op: "utimensat", Path: path, Err: err}
	}
	return nil
}
