package lazyfs

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

const (
	// maxRead is the largest read that the kernel may ask for, in bytes, and
	// the largest that it does by default.
	maxRead = 1 << 20
	// maxBackground is how many reads ahead may be under way at once. Each may
	// wait for a round trip to a registry; the kernel's default of 12 would
	// leave the line idle.
	maxBackground = 128
	// The version of the protocol is that of Linux 6.9, which brought
	// passthrough, or an older one from Linux 5.1 on, where opening of
	// directories can be refused.
	major, minor, leastMinor = 7, 40, 29
)

// features are what is made use of where the kernel has it.
const features = uint64(fuse.CAP_ASYNC_READ | // reads ahead, side by side
	fuse.CAP_PARALLEL_DIROPS |
	fuse.CAP_READDIRPLUS |
	fuse.CAP_EXPLICIT_INVAL_DATA | // which is never
	fuse.CAP_CACHE_SYMLINKS |
	fuse.CAP_MAX_PAGES |
	fuse.CAP_INIT_EXT)

func (f *filesystem) init(in *fuse.InitIn, out *fuse.InitOut) unix.Errno {
	if in.Major != major || in.Minor < leastMinor {
		return unix.EPROTO
	}
	wanted := features
	if f.layer.HasXattrs() {
		wanted |= fuse.CAP_POSIX_ACL
	}
	if f.opens.wanted {
		wanted |= fuse.CAP_PASSTHROUGH
		// How many filesystems deep the files on disk may lie, and this one
		// counts from then on. An overlay above is the last that the kernel
		// allows.
		out.MaxStackDepth = 1
	}
	flags := uint64(in.Flags) & wanted
	if flags&fuse.CAP_INIT_EXT != 0 { // else the message ends before the others
		flags = in.Flags64() & wanted
	}
	f.opens.wanted = flags&fuse.CAP_PASSTHROUGH != 0

	out.Major = major
	out.Minor = min(in.Minor, minor)
	out.Flags, out.Flags2 = uint32(flags), uint32(flags>>32)
	out.MaxReadAhead = in.MaxReadAhead
	out.MaxBackground = maxBackground
	out.CongestionThreshold = maxBackground * 3 / 4
	out.MaxWrite = 4096 // the least that there is
	out.MaxPages = uint16(maxRead / os.Getpagesize())
	out.TimeGran = 1 // nanoseconds
	return 0
}

// probeName is the name of a file in the root, until the mount has settled.
const probeName = ".lazyfs-probe"

// settle waits until the mount at a directory answers.
//
// The Go runtime polls each file that it opens, and lets no other goroutine have
// the processor meanwhile. If this process opens a file of its own mount, the
// one who would answer might wait for that very processor. So the kernel is made
// to ask now, and told to ask no more, by a call that lets others go on.
func (f *filesystem) settle(dir string) error {
	defer f.settled.Store(true)
	fd, err := unix.Open(filepath.Join(dir, probeName), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		err = fmt.Errorf("the kernel's FUSE does not work with us, which takes Linux 5.1: %w", err)
		return unavailableIf(err, unix.ECONNREFUSED, unix.EPERM, unix.EACCES) // the first if init has refused
	}
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err
}

func (f *filesystem) isProbe(dir store.Node, name string) bool {
	return dir == store.Root && name == probeName && !f.settled.Load()
}

// probe is a file behind those of the layer, whose name the kernel forgets at
// once.
func (f *filesystem) probe() fuse.EntryOut {
	a := fuse.Attr{Ino: idOf(store.Node(f.layer.Nodes())), Mode: unix.S_IFREG | 0o444, Nlink: 1}
	return fuse.EntryOut{NodeId: a.Ino, AttrValid: forever, Attr: a}
}

// probed answers what is asked of the probe. It can be opened and closed.
func probed(r *request) unix.Errno {
	switch r.header().Opcode {
	case opOpen:
		answer[fuse.OpenOut](r)
		return 0
	case opRelease:
		return 0
	case opGetXAttr:
		return unix.ENODATA // ENOSYS would be an answer for all files
	}
	return unix.ENOSYS
}
