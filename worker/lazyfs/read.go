package lazyfs

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// read answers with contents. While it waits for them another goroutine receives
// requests.
func (c *conn) read(r *request, in *fuse.ReadIn) unix.Errno {
	f, n, off := c.files, nodeOf(in.NodeId), int64(in.Offset)
	reading := c.reads.begin(r.header())
	defer c.reads.end(reading)
	ctx := context.Background()
	if !f.layer.Here(n, off, int64(in.Size)) {
		if f.failures.again(n, off) {
			return unix.EIO
		}
		ctx = c.wait(reading)
		r.goOn()
	}
	p := r.body(int(in.Size))
	got, err := f.layer.ReadAt(ctx, n, p, off)
	switch {
	case err == nil || errors.Is(err, io.EOF):
		r.trim(got)
		if off == 0 {
			c.ahead.read(n)
		}
		return 0
	case ctx.Err() != nil:
		return unix.EINTR
	}
	f.failures.add(n, off, int64(len(p)))
	return unix.EIO
}

// failures remembers the last read that failed. The kernel reads ahead, and
// when that fails asks for the first page alone, at once. That must not wait
// for a registry's deadline once more.
type failures struct {
	mu       sync.Mutex
	node     store.Node
	from, to int64 // bytes of the file
	until    time.Time
}

// failureLasts is how long a read that failed is not tried again.
const failureLasts = time.Second

func (f *failures) add(n store.Node, off, size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.node, f.from, f.to, f.until = n, off, off+size, time.Now().Add(failureLasts)
}

func (f *failures) again(n store.Node, off int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.node == n && f.from <= off && off < f.to && time.Now().Before(f.until)
}
