package lazyfs

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A conn answers what the kernel asks of a filesystem. It stands in the place of
// go-fuse's server, of which only the messages are used: that one keeps several
// threads for each mount in a blocking read(2). The Go runtime has no processor
// for more of them than there are cores, and who was waiting for a request then
// waits for a processor: 45 to 60 µs for a question and its answer, where it is
// 15 µs here, with any number of mounts. Nor is there a buffer for each thread
// with room for the largest write, which never comes.
//
// Here the runtime's poller waits, and who receives a request answers it, too:
// to hand it to another goroutine would double the work.
type conn struct {
	device  *os.File
	raw     syscall.RawConn
	files   *filesystem
	serving sync.WaitGroup
	spare   sync.Pool // of *request
	slow    atomic.Int32
	reads   reads
	ahead   *ahead
}

const (
	// slowRead is how long a read takes that is not answered from memory.
	slowRead = 200 * time.Microsecond
	// slowReads is how many reads after a slow one are expected to be slow, too.
	slowReads = 32
)

func newConn(device *os.File, files *filesystem) *conn {
	raw, _ := device.SyscallConn() // fails for a nil file
	c := &conn{device: device, raw: raw, files: files}
	c.spare.New = func() any { return newRequest() }
	c.reads.dying, c.reads.of = dying, map[uint64]*reading{}
	files.opens.device = raw
	c.ahead = newAhead(files.layer, c.serving.Go, c.notify)
	return c
}

func (c *conn) start() { c.serving.Go(c.serve) }

// serve answers requests one after another, until the connection ends or another
// serve has taken its place. A read that has to wait for contents has itself
// replaced. One that waits for the disk does not know; but where there is one
// there are more, and so the next are answered side by side.
func (c *conn) serve() {
	poll := busyPoll{layer: c.files.layer, now: c.files.now}
	for {
		r := c.spare.Get().(*request)
		r.poll = &poll
		if err := c.raw.Read(r.receive); err != nil || r.err != 0 {
			c.cut()
			return
		}
		poll.received()
		if r.header().Opcode == opRead && c.slow.Load() > 0 {
			c.serving.Go(func() { c.answer(r) })
			continue
		}
		r.replace = c.start
		if replaced := c.answer(r); replaced {
			return
		}
		poll.done()
	}
}

// cut ends the connection, and all waiting for contents. Closing waits for who
// writes to the device; what tells the kernel of contents waits there for the
// answer to a read of the same page, which nobody can give any more by then. So
// that goes first, while reads are still answered.
func (c *conn) cut() {
	c.reads.cutOff()
	c.ahead.end()
	c.device.Close()
}

// answer says whether the one who answers was replaced meanwhile.
func (c *conn) answer(r *request) (replaced bool) {
	if errno, answered := c.dispatch(r); answered {
		r.finish(errno)
		c.raw.Control(r.send)
	}
	replaced = r.replaced
	r.reset()
	c.spare.Put(r)
	return replaced
}

// dispatch says false if a request is not to be answered.
func (c *conn) dispatch(r *request) (errno unix.Errno, answered bool) {
	switch h := r.header(); h.Opcode {
	case opForget, opBatchForget:
		for id := range r.forgotten {
			c.ahead.forgot(nodeOf(id))
		}
		return 0, false
	case opInterrupt:
		errno = c.interrupt(message[fuse.InterruptIn](r).Unique)
		return errno, errno != 0
	case opRead:
		start := time.Now()
		errno = c.read(r, message[fuse.ReadIn](r))
		c.took(time.Since(start))
		return errno, true
	case opReadDirPlus:
		errno = c.files.answer(r)
		if r.empty() {
			c.ahead.listed(nodeOf(h.NodeId))
		}
		return errno, true
	default:
		return c.files.answer(r), true
	}
}

func (c *conn) took(d time.Duration) {
	if d > slowRead {
		c.slow.Store(slowReads)
	} else if c.slow.Load() > 0 {
		c.slow.Add(-1)
	}
}

// notify tells the kernel what it did not ask for.
func (c *conn) notify(p []byte) (err error) {
	if gone := c.raw.Control(func(fd uintptr) { _, err = unix.Write(int(fd), p) }); gone != nil {
		return gone
	}
	return err
}
