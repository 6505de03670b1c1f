package lazyfs

import (
	"sync/atomic"
	"time"
)

// A fakeClock stands still until it is set forward.
type fakeClock struct {
	time  atomic.Int64 // in nanoseconds
	looks atomic.Int64 // how often it was looked at
}

func (c *fakeClock) now() time.Time {
	c.looks.Add(1)
	return time.Unix(1, c.time.Load())
}

func (c *fakeClock) forward(d time.Duration) { c.time.Add(int64(d)) }
