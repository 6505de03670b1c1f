package lazy

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// quiet is for how long nobody must have read a layer before what nobody
	// asked for is fetched. To decompress and to verify that takes processors
	// from who reads and computes in turns, as programs do that start.
	quiet = time.Second
	// Reads that have to wait for a registry leave the processors idle. When the
	// last few of them came within fewTime, the last one within afterWait, the
	// next is likely to wait as well, and what is fetched meanwhile may be what
	// comes next.
	few       = 4
	fewTime   = 500 * time.Millisecond
	afterWait = 100 * time.Millisecond
	// lookAgain is how often it is looked at whether a read had to wait.
	lookAgain = afterWait / 4
)

// calm knows when the background's time is. It is safe for concurrent use.
type calm struct {
	read        atomic.Int64 // when that happened last, in Unix nanoseconds
	prefetching atomic.Int32 // layers

	mu     sync.Mutex
	waited [few]time.Time // the last ones, the latest first
}

func (c *calm) reads() { c.read.Store(time.Now().UnixNano()) }

func (c *calm) waits() {
	if c.prefetching.Load() > 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	copy(c.waited[1:], c.waited[:])
	c.waited[0] = time.Now()
}

// waiting says whether somebody waits for registries time and again.
func (c *calm) waiting() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.waited[0]) < afterWait && time.Since(c.waited[few-1]) < fewTime
}

// await waits until it is time. Soon is whether that is because somebody waits.
func (c *calm) await(ctx context.Context) (soon bool, err error) {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for ctx.Err() == nil {
		soon = c.waiting()
		if c.prefetching.Load() == 0 && (soon || time.Now().UnixNano()-c.read.Load() > int64(quiet)) {
			return soon, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return false, context.Cause(ctx)
}
