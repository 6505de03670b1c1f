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

	"golang.org/x/sys/unix"
)

// A reader is the context of a read. It is done when nobody wants to know the
// result any longer. Most reads are of what is present; preparations for waiting
// are made when somebody asks for Done, which is who is going to wait.
type reader struct {
	context.Context
	cancel  context.CancelFunc
	conn    *conn
	request *request
	unique  uint64 // the kernel's number of the read
	thread  uint32 // the one that reads

	prepare sync.Once
	watched bool // by who waits for the thread's end
}

func newReader(c *conn, r *request) *reader {
	ctx, cancel := context.WithCancel(context.Background())
	h := r.header()
	return &reader{Context: ctx, cancel: cancel, conn: c, request: r, unique: h.Unique, thread: h.Pid}
}

func (r *reader) Done() <-chan struct{} {
	r.prepare.Do(func() {
		r.conn.waits.add(r)
		if r.request.replace != nil {
			r.request.replace()
			r.request.replaced = true
		}
	})
	return r.Context.Done()
}

// end is called when the read is over.
func (r *reader) end() {
	r.prepare.Do(func() {}) // too late
	r.conn.waits.remove(r)
	r.cancel()
}

// waits are the reads that wait for contents, by the kernel's number.
type waits struct {
	mu  sync.Mutex
	of  map[uint64]*reader
	cut bool
}

func (w *waits) add(r *reader) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		r.cancel()
	}
	w.of[r.unique] = r
}

func (w *waits) remove(r *reader) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.of, r.unique)
}

// end is the end of all waiting, now and later.
func (w *waits) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	for _, r := range w.of {
		r.cancel()
	}
}

// interrupt is called when a thread that reads got a signal. More the kernel
// does not say, nor anything of further signals. To give up for any signal would
// break programs: a read(2) of a file does not end with EINTR, and who touches a
// mapped page gets SIGBUS. So the thread is looked at until it is being killed
// or the read is over. A read that is not known to wait will do so presently, or
// is over: the kernel is told to try again.
func (c *conn) interrupt(unique uint64) unix.Errno {
	c.waits.mu.Lock()
	defer c.waits.mu.Unlock()
	r := c.waits.of[unique]
	if r == nil {
		return unix.EAGAIN
	}
	if !r.watched {
		r.watched = true
		c.serving.Go(r.watch)
	}
	return 0
}

// watchEvery is how often a thread that got a signal is looked at.
const watchEvery = 20 * time.Millisecond

func (r *reader) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for !dying(r.thread) {
		select {
		case <-tick.C:
		case <-r.Context.Done():
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
