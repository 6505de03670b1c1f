package lazyfs

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// vigilTime is how long the one who answered stays awake for the next
	// request. Who walks a tree asks again as soon as he has the answer. To wake
	// a thread on an idle processor takes 50 to 100 µs on virtual machines,
	// several times what there is to do for a request: find(1) on 30,000 files
	// made 4,900 requests in 1.2 seconds, and needs 0.65 so.
	vigilTime = 400 * time.Microsecond
	// brisk is how soon after an answer the next request came if it is worth to
	// stay awake for the one after.
	brisk = 2 * time.Millisecond
)

// A vigil polls for a request instead of sleeping until there is one. Whoever
// else can use the processor goes first; but what is being fetched wants all of
// them, and who waits for it asks seldom, so that there is a vigil for complete
// layers only. It belongs to one goroutine.
type vigil struct {
	layer    Layer
	answered time.Time // the last request
	worth    bool
	begun    time.Time
}

// begin is called before the wait for a request. It tells whether to poll.
func (v *vigil) begin() bool {
	v.begun = time.Now()
	return v.worth && v.layer.Complete() && runtime.GOMAXPROCS(0) > 1
}

// goOn is called when there was no request yet. It tells whether to poll again.
func (v *vigil) goOn() bool {
	if time.Since(v.begun) > vigilTime {
		return false
	}
	runtime.Gosched()
	// Another process may be waiting for this processor.
	_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	return true
}

// received is called when there was one, and done when it is answered.
func (v *vigil) received() { v.worth = time.Since(v.answered) < brisk }
func (v *vigil) done()     { v.answered = time.Now() }
