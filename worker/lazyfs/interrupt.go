package lazyfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// reads are those that were received and not answered, by the kernel's number.
type reads struct {
	dying func(thread uint32) bool

	mu  sync.Mutex
	of  map[uint64]*reading
	cut bool
}

// A reading is a read by a thread. Its fields are guarded by reads.mu.
type reading struct {
	unique    uint64
	thread    uint32
	cancel    context.CancelFunc // nil until it waits for contents
	over      <-chan struct{}    // closed when it was cancelled or is over
	signalled bool               // its thread got a signal
}

// begin is called when a read is received, and end when it is over.
func (s *reads) begin(h *fuse.InHeader) *reading {
	r := &reading{unique: h.Unique, thread: h.Pid}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of[r.unique] = r
	return r
}

func (s *reads) end(r *reading) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, r.unique)
	if r.cancel != nil {
		r.cancel()
	}
}

// wait returns a context that is done when nobody wants to know the result of
// the read any longer.
func (c *conn) wait(r *reading) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	c.reads.mu.Lock()
	defer c.reads.mu.Unlock()
	r.cancel, r.over = cancel, ctx.Done()
	if c.reads.cut {
		cancel()
	}
	if r.signalled {
		c.serving.Go(func() { c.reads.watch(r) })
	}
	return ctx
}

// cutOff is the end of all waiting, now and later.
func (s *reads) cutOff() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = true
	for _, r := range s.of {
		if r.cancel != nil {
			r.cancel()
		}
	}
}

// interrupt is called when a thread that reads got a signal. More the kernel
// does not say, nor anything of further signals. To give up for any signal would
// break programs: a read(2) of a file does not end with EINTR, and who touches a
// mapped page gets SIGBUS. So the thread is looked at, once the read waits, until
// it is being killed or the read is over. A read that is not known was not
// received yet: the kernel is told to try again.
func (c *conn) interrupt(unique uint64) unix.Errno {
	c.reads.mu.Lock()
	defer c.reads.mu.Unlock()
	r := c.reads.of[unique]
	if r == nil {
		return unix.EAGAIN
	}
	if r.cancel != nil && !r.signalled {
		c.serving.Go(func() { c.reads.watch(r) })
	}
	r.signalled = true
	return 0
}

// watchEvery is how often a thread that got a signal is looked at.
const watchEvery = 20 * time.Millisecond

func (s *reads) watch(r *reading) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for !s.dying(r.thread) {
		select {
		case <-tick.C:
		case <-r.over:
			return
		}
	}
	r.cancel()
}

// dying says whether a thread was sent SIGKILL, or is gone. Of one in another
// PID namespace, which the kernel calls 0, it cannot be known.
func dying(thread uint32) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return thread != 0 && errors.Is(err, fs.ErrNotExist)
	}
	for line := range bytes.Lines(status) {
		mask, found := bytes.CutPrefix(line, []byte("SigPnd:"))
		if !found {
			continue
		}
		pending, err := strconv.ParseUint(string(bytes.TrimSpace(mask)), 16, 64)
		return err == nil && pending&(1<<(unix.SIGKILL-1)) != 0
	}
	return false
}
