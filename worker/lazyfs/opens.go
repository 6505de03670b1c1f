package lazyfs

import (
	"sync"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

const (
	// hugeSize is the size in bytes from which on a file counts as huge.
	hugeSize = 64 << 20
	// hugeShare is how many bytes of huge files for each node of a layer are
	// worth passthrough. To ask for a MiB in parts of 128 KiB, and to copy it,
	// takes as long as sixteen questions, and so does opening that many files.
	hugeShare = 64 << 10
	// largeSize is that of files that are read by passthrough where there is
	// passthrough.
	largeSize = 1 << 20
)

func worthPassthrough(layer Layer) bool {
	var huge int64
	for n := range store.Node(layer.Nodes()) {
		if size := layer.Attr(n).Size; size >= hugeSize {
			huge += size
		}
	}
	return huge/hugeShare >= int64(layer.Nodes())
}

// opens counts who has which large file open. The kernel reads a file either
// through the page cache, asking here, or by passthrough, never both at once,
// so who opens it first decides for all until the last one closes it.
type opens struct {
	wanted bool // passthrough; until the kernel says that it has none
	device syscall.RawConn

	mu      sync.Mutex
	of      map[store.Node]*opened
	proven  bool // that there is passthrough here
	refused bool // by the kernel, or for want of privileges
}

type opened struct {
	count   int
	backing int32 // the kernel's number of the file on disk; 0 without passthrough
}

// counted is the handle of open files that have to be counted off.
const counted = 1

func (f *filesystem) open(n store.Node, out *fuse.OpenOut) unix.Errno {
	if !f.opens.wanted {
		return unix.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	if f.layer.Attr(n).Size < largeSize {
		return 0
	}
	backing, refused := f.opens.open(n, f.layer)
	if refused {
		return unix.ENOSYS
	}
	out.Fh = counted
	if backing != 0 {
		out.OpenFlags = fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_NOFLUSH
		out.BackingID = backing
	}
	return 0
}

func (f *filesystem) release(n store.Node, handle uint64) unix.Errno {
	if handle == counted {
		f.opens.release(n)
	}
	return 0
}

// open counts a file as open. It returns the number of its file on disk, if it
// is read by passthrough.
func (o *opens) open(n store.Node, layer Layer) (backing int32, refused bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.refused {
		return 0, true
	}
	f := o.of[n]
	if f == nil {
		f = &opened{}
		f.backing, o.refused = o.register(n, layer)
		if o.refused {
			return 0, true
		}
		o.of[n] = f
	}
	f.count++
	return f.backing, false
}

func (o *opens) release(n store.Node) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f := o.of[n]
	if f == nil {
		return
	}
	if f.count--; f.count > 0 {
		return
	}
	if f.backing != 0 {
		o.ioctl(backingClose, unsafe.Pointer(&f.backing))
	}
	delete(o.of, n)
}

// register makes the file on disk known to the kernel, if it is complete. What
// the kernel refuses the first time it refuses ever after.
func (o *opens) register(n store.Node, layer Layer) (backing int32, refused bool) {
	file, ok := layer.Backing(n)
	if !ok {
		return 0, false
	}
	defer file.Close()
	backing, errno := o.ioctl(backingOpen, unsafe.Pointer(&fuse.BackingMap{Fd: int32(file.Fd())}))
	if errno != 0 {
		return 0, !o.proven
	}
	o.proven = true
	return backing, false
}

// FUSE_DEV_IOC_BACKING_OPEN and FUSE_DEV_IOC_BACKING_CLOSE of linux/fuse.h.
const (
	backingOpen  = 0x4010e501
	backingClose = 0x4004e502
)

func (o *opens) ioctl(command uintptr, arg unsafe.Pointer) (result int32, errno unix.Errno) {
	errno = unix.EBADF
	o.device.Control(func(fd uintptr) {
		var r uintptr
		r, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, command, uintptr(arg))
		result = int32(r)
	})
	return result, errno
}
