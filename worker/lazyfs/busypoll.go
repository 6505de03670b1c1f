package lazyfs

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// busyPollTime is how long a goroutine that has answered a request polls for
	// the next one. A program that walks a tree sends it as soon as it has the
	// answer. To wake a thread on an idle processor takes 50 to 100 µs on virtual
	// machines, several times what there is to do for a request: find(1) on 30,000
	// files made 4,900 requests in 1.2 seconds, and needs 0.65 with polling.
	busyPollTime = 400 * time.Microsecond
	// busyPollGap is the longest time between an answer and the next request after
	// which polling for the one that follows is worthwhile.
	busyPollGap = 2 * time.Millisecond
)

// A busyPoll decides whether to poll for a request or to sleep until there is one.
// Polling yields the processor to everybody else. Decompressing what is fetched
// wants all processors, though, and requests that wait for it are rare, so that only
// complete layers are polled for. A busyPoll belongs to one goroutine.
type busyPoll struct {
	layer    Layer
	now      func() time.Time
	answered time.Time // the last request
	worth    bool
	begun    time.Time
}

// begin is called before the wait for a request. It tells whether to poll.
func (b *busyPoll) begin() bool {
	b.begun = b.now()
	return b.worth && b.layer.Complete() && runtime.GOMAXPROCS(0) > 1
}

// again is called when there was no request yet. It tells whether to poll again.
func (b *busyPoll) again() bool {
	if b.now().Sub(b.begun) > busyPollTime {
		return false
	}
	runtime.Gosched()
	// Another process may be waiting for this processor.
	_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	return true
}

// received is called when there was one, and done when it is answered.
func (b *busyPoll) received() { b.worth = b.now().Sub(b.answered) < busyPollGap }
func (b *busyPoll) done()     { b.answered = b.now() }
