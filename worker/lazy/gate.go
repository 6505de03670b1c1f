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
	// gateInterval is how often await looks at whether a read had to wait.
	gateInterval = afterWait / 4
)

// A gate says when to fetch what nobody waits for. It is safe for concurrent use.
type gate struct {
	read        atomic.Int64 // when a layer was read last, in Unix nanoseconds
	prefetching atomic.Int32 // layers

	mu     sync.Mutex
	waited [few]time.Time // when reads last had to wait, the latest first
}

func (g *gate) reads() { g.read.Store(time.Now().UnixNano()) }

func (g *gate) waits() {
	if g.prefetching.Load() > 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	copy(g.waited[1:], g.waited[:])
	g.waited[0] = time.Now()
}

// waiting says whether somebody waits for registries time and again.
func (g *gate) waiting() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Since(g.waited[0]) < afterWait && time.Since(g.waited[few-1]) < fewTime
}

// await waits until it is time to fetch. Soon is whether that is because somebody
// waits for a registry.
func (g *gate) await(ctx context.Context) (soon bool, err error) {
	tick := time.NewTicker(gateInterval)
	defer tick.Stop()
	for ctx.Err() == nil {
		soon = g.waiting()
		if g.prefetching.Load() == 0 && (soon || time.Now().UnixNano()-g.read.Load() > int64(quiet)) {
			return soon, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return false, context.Cause(ctx)
}
