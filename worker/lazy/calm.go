package lazy

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	// quiet is for how long nobody must have read a layer before what nobody
	// asked for is fetched. To decompress and to verify that takes processors
	// from who reads and computes in turns, as programs do that start.
	quiet = time.Second
	// A read that had to wait for a registry leaves the processors idle. Who
	// reads on soon after waits again, and what is fetched meanwhile may be what
	// comes next.
	afterWait = 100 * time.Millisecond
	// lookAgain is how often it is looked at whether a read had to wait.
	lookAgain = afterWait / 4
)

// calm knows when the background's time is. It is safe for concurrent use.
type calm struct {
	read, waited atomic.Int64 // when that happened last, in Unix nanoseconds
	prefetching  atomic.Int32 // layers
}

func (c *calm) reads() { c.read.Store(time.Now().UnixNano()) }

func (c *calm) waits() {
	if c.prefetching.Load() == 0 {
		c.waited.Store(time.Now().UnixNano())
	}
}

// await waits until it is time. Soon is whether that is because somebody waits
// for registries.
func (c *calm) await(ctx context.Context) (soon bool, err error) {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for ctx.Err() == nil {
		now := time.Now().UnixNano()
		soon = now-c.waited.Load() < int64(afterWait)
		if c.prefetching.Load() == 0 && (soon || now-c.read.Load() > int64(quiet)) {
			return soon, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return false, context.Cause(ctx)
}
