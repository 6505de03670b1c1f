package lazyfs

import (
	"context"
	"errors"
	"io"
	"maps"
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
		if f.failures.again(r.header().Pid, n, off) {
			return unix.EIO
		}
		ctx = c.wait(reading)
		r.goOn()
	}
	// A read that waits has no buffer: there may be any number of them.
	got, err := 0, f.layer.Wait(ctx, n, off, int64(in.Size))
	if err == nil {
		got, err = f.layer.ReadPresent(n, r.body(int(in.Size)), off)
	}
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
	f.failures.add(r.header().Pid, n, off, int64(in.Size))
	return unix.EIO
}

// failures remembers the last read of each thread that failed. The kernel reads
// ahead, and when that fails asks for the first page alone, at once. That must
// not wait for a registry's deadline once more. Another thread's read is tried,
// since it may be of a build with other credentials.
type failures struct {
	now func() time.Time

	mu sync.Mutex
	of map[uint32]failure // by thread
}

type failure struct {
	node     store.Node
	from, to int64 // bytes of the file
	until    time.Time
}

// failureLasts is how long a read that failed is not tried again.
const failureLasts = time.Second

func (f *failures) add(thread uint32, n store.Node, off, size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	maps.DeleteFunc(f.of, func(_ uint32, old failure) bool { return now.After(old.until) })
	f.of[thread] = failure{n, off, off + size, now.Add(failureLasts)}
}

func (f *failures) again(thread uint32, n store.Node, off int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	last, ok := f.of[thread]
	return ok && last.node == n && last.from <= off && off < last.to && f.now().Before(last.until)
}
