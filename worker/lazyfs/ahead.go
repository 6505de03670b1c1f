package lazyfs

import (
	"os"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

type ahead struct {
	mu     sync.Mutex
	last   store.Node
	streak int
	window int
	busy   bool
	until  store.Node
}

const maxWindow = 256

var noAhead = os.Getenv("NOAHEAD") != ""

func (c *conn) pushAhead(n store.Node) {
	if noAhead {
		return
	}
	a := &c.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	if n > a.last && n <= max(a.last, a.until)+16 {
		a.streak++
	} else {
		a.streak = 0
		a.window = 4
		a.until = 0
	}
	a.last = n
	if a.streak < 1 || a.busy {
		return
	}
	a.window = min(2*a.window, maxWindow)
	from := max(n+1, a.until)
	to := min(from+store.Node(a.window), store.Node(c.files.layer.Nodes()))
	a.until = to
	a.busy = true
	c.serving.Go(func() { c.push(from, to) })
}

func (c *conn) push(from, to store.Node) {
	defer func() { c.ahead.mu.Lock(); c.ahead.busy = false; c.ahead.mu.Unlock() }()
	type message struct {
		fuse.OutHeader
		fuse.NotifyStoreOut
	}
	const head = int(unsafe.Sizeof(message{}))
	for n := from; n < to; n++ {
		p, ok := c.files.layer.Small(n)
		if !ok || len(p) > 128<<10 {
			continue
		}
		msg := make([]byte, head+len(p))
		copy(msg[head:], p)
		*(*message)(unsafe.Pointer(&msg[0])) = message{
			fuse.OutHeader{Length: uint32(len(msg)), Status: 4},
			fuse.NotifyStoreOut{Nodeid: idOf(n), Size: uint32(len(p))},
		}
		var err error
		c.raw.Control(func(fd uintptr) { _, err = unix.Write(int(fd), msg) })
		if err != nil {
			Fails++
			c.ahead.mu.Lock()
			c.ahead.until = n
			c.ahead.mu.Unlock()
			return
		} else {
			Pushed++
		}
	}
}

func (c *conn) listed(dir store.Node) {
	a := &c.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	if noAhead || a.streak < 1 || a.busy || len(os.Getenv("NOLIST")) > 0 {
		return
	}
	first, last := store.Node(0), store.Node(0)
	for _, e := range c.files.layer.Entries(dir, 0) {
		if first == 0 {
			first = e.Node
		}
		last = e.Node
	}
	if first == 0 || last-first > 1000 {
		return
	}
	a.busy = true
	a.until = last + 1
	c.serving.Go(func() { c.push(first, last+1) })
}

var Fails, Pushed int
