package lazyfs

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// What the kernel asks of a read-only filesystem.
const (
	opLookup      = 1
	opForget      = 2
	opGetAttr     = 3
	opReadlink    = 5
	opOpen        = 14
	opRead        = 15
	opStatFs      = 17
	opRelease     = 18
	opGetXAttr    = 22
	opListXAttr   = 23
	opInit        = 26
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42
	opReadDirPlus = 44
)

const (
	// requestSize is the least room for a request that the kernel accepts, in
	// bytes. Only writes would need more.
	requestSize = 8192
	headerSize  = int(unsafe.Sizeof(fuse.OutHeader{}))
)

// A request is a message of the kernel, and its answer.
type request struct {
	in      []byte
	out     []byte // header and body of the answer
	receive func(fd uintptr) (received bool)
	send    func(fd uintptr)
	size    int        // of the message in bytes
	err     unix.Errno // of receiving
	poll    *busyPoll  // says whether to poll while there is no message; may be nil

	// replace, if not nil, has another goroutine receive requests because this
	// one is going to wait.
	replace  func()
	replaced bool
}

func newRequest() *request {
	r := &request{in: make([]byte, requestSize), out: make([]byte, headerSize, requestSize)}
	r.receive = r.receiveFrom
	r.send = r.sendTo
	return r
}

func (r *request) receiveFrom(fd uintptr) (received bool) {
	polls := r.poll != nil && r.poll.begin()
	for {
		// It does not block, so that the runtime need not know of it.
		size, _, err := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&r.in[0])), uintptr(len(r.in)))
		r.size, r.err = int(size), err
		switch err {
		case unix.EINTR, unix.ENOENT: // ENOENT: who asked gave up
		case unix.EAGAIN:
			if polls = polls && r.poll.again(); !polls {
				r.poll = nil // now it sleeps
				return false
			}
		default:
			return true
		}
	}
}

// sendTo does not tell of errors: an answer that cannot be delivered is one for
// somebody who is gone.
func (r *request) sendTo(fd uintptr) {
	for {
		if _, err := unix.Write(int(fd), r.out); err != unix.EINTR {
			return
		}
	}
}

func (r *request) header() *fuse.InHeader { return message[fuse.InHeader](r) }

// message is the request as what its opcode says it is. The kernel does not send
// less than that.
func message[T any](r *request) *T { return (*T)(unsafe.Pointer(&r.in[0])) }

// name is the one that follows the message, which ends with a zero byte.
func name[T any](r *request) string {
	return string(r.in[unsafe.Sizeof(*new(T)) : r.size-1])
}

// body makes room for the body of the answer, of so many bytes.
func (r *request) body(size int) []byte {
	if cap(r.out) < headerSize+size {
		r.out = make([]byte, headerSize+size)
	}
	r.out = r.out[:headerSize+size]
	return r.out[headerSize:]
}

// answer is the body of the answer as a zero T.
func answer[T any](r *request) *T {
	p := r.body(int(unsafe.Sizeof(*new(T))))
	clear(p)
	return (*T)(unsafe.Pointer(&p[0]))
}

// trim cuts the body down to what was made use of.
func (r *request) trim(size int) { r.out = r.out[:headerSize+size] }

// empty says whether the answer has no body.
func (r *request) empty() bool { return len(r.out) == headerSize }

// finish writes the header of the answer, which has no body if there is an error.
func (r *request) finish(errno unix.Errno) {
	if errno != 0 {
		r.trim(0)
	}
	*(*fuse.OutHeader)(unsafe.Pointer(&r.out[0])) = fuse.OutHeader{
		Length: uint32(len(r.out)),
		Status: -int32(errno),
		Unique: r.header().Unique,
	}
}

// goOn has another goroutine receive requests, unless one does.
func (r *request) goOn() {
	if r.replace != nil {
		r.replace()
		r.replaced = true
	}
}

func (r *request) reset() {
	r.replace, r.replaced = nil, false
	r.trim(0)
}

// A notice tells the kernel something that it did not ask for: contents of a
// file, for the page cache.
type notice []byte

type noticeHead struct {
	fuse.OutHeader
	fuse.NotifyStoreOut
}

const noticeSize = int(unsafe.Sizeof(noticeHead{}))

// contents is where those of so many bytes belong.
func (n notice) contents(size int) []byte { return n[noticeSize:][:size] }

// of is the notice that a file's first so many bytes are these contents.
func (n notice) of(id uint64, size int) []byte {
	*(*noticeHead)(unsafe.Pointer(&n[0])) = noticeHead{
		fuse.OutHeader{Length: uint32(noticeSize + size), Status: -fuse.NOTIFY_STORE_CACHE},
		fuse.NotifyStoreOut{Nodeid: id, Size: uint32(size)},
	}
	return n[:noticeSize+size]
}

// forgotten are the nodes that a request tells to have been forgotten.
func (r *request) forgotten(yield func(id uint64) bool) {
	if r.header().Opcode == opForget {
		yield(r.header().NodeId)
		return
	}
	type one struct{ Node, Lookups uint64 }
	type many struct {
		fuse.InHeader
		Count, _ uint32
	}
	at := int(unsafe.Sizeof(many{}))
	for range message[many](r).Count {
		if at+int(unsafe.Sizeof(one{})) > r.size || !yield((*one)(unsafe.Pointer(&r.in[at])).Node) {
			return
		}
		at += int(unsafe.Sizeof(one{}))
	}
}
