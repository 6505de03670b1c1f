package record

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// An End says what ended a recording.
type End string

const (
	EndExit   End = "exit"   // of the process's own accord
	EndPeriod End = "period" // Options.Period was over
	EndIdle   End = "idle"   // no new file for Options.Idle
	EndReady  End = "ready"  // the output matched Options.Ready
	EndDisk   End = "disk"   // what the process wrote left too little of the disk
	EndStart  End = "start"  // the process could not be started
	EndWatch  End = "watch"  // the recording failed
)

// wait returns when the process has exited, a rule holds or the recording failed.
// Period and Idle begin with the process's first access: what comes before is the
// runtime's time.
// Signals from outside are passed on meanwhile.
func (r run) wait(w *watch, signals chan<- syscall.Signal, ready, exited <-chan struct{}) End {
	var period, idle <-chan time.Time
	outer, seen := r.process.Signal, w.seen
	disk := openDisk(w.root)
	looks := time.NewTicker(diskTime)
	defer looks.Stop()
	for {
		select {
		case <-seen:
			seen = nil
			period, idle = r.timer(r.opts.Period), r.timer(r.opts.Idle)
		case s, ok := <-outer:
			if !ok {
				outer = nil
			} else {
				r.sent(signals, s, exited)
			}
		case <-exited:
			return EndExit
		case <-w.ended:
			return EndWatch
		case <-ready:
			return EndReady
		case <-looks.C:
			if disk.low() {
				return EndDisk
			}
		case <-period:
			return EndPeriod
		case <-idle:
			quiet := time.Since(time.Unix(0, w.newest.Load()))
			if quiet >= r.opts.Idle {
				return EndIdle
			}
			idle = r.timer(r.opts.Idle - quiet)
		}
	}
}

// busy tells whether the process was not idle yet. With a period that is shorter
// than that nobody can tell.
func (o Options) busy(w *watch, at time.Time) bool {
	return 0 <= o.Idle && o.Idle < o.Period && at.Sub(time.Unix(0, w.newest.Load())) < o.Idle
}

// timer fires after d, or never if d is negative.
func (r run) timer(d time.Duration) <-chan time.Time {
	if d < 0 {
		return nil
	}
	return r.after(d)
}

// stop ends the process through its signals: SIGTERM, SIGKILL after grace, and
// if that does not help cancel, which makes the executor kill it. With the
// first process of a pid namespace die the others.
func (r run) stop(init int, grace time.Duration, signals chan<- syscall.Signal, exited <-chan struct{}, cancel func()) {
	if handles(init, syscall.SIGTERM) {
		if r.sent(signals, syscall.SIGTERM, exited) && r.waited(exited, grace) {
			return
		}
	}
	if r.sent(signals, syscall.SIGKILL, exited) && r.waited(exited, killTime) {
		return
	}
	cancel()
	<-exited
}

// killTime is how long a killed container may take to be gone.
const killTime = 5 * time.Second

func (r run) sent(signals chan<- syscall.Signal, s syscall.Signal, exited <-chan struct{}) bool {
	select {
	case signals <- s:
		return true
	case <-exited:
		return true
	case <-r.timer(killTime):
		return false
	}
}

func (r run) waited(exited <-chan struct{}, d time.Duration) bool {
	select {
	case <-exited:
		return true
	case <-r.timer(d):
		return false
	}
}

// handles tells whether a process has a handler for the signal. To the first
// process of a pid namespace the kernel does not deliver a signal otherwise, so
// that it would be waited for in vain. Who cannot be asked is taken to have one.
func handles(pid int, s syscall.Signal) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true
	}
	_, rest, ok := strings.Cut(string(status), "\nSigCgt:")
	mask, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	caught, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
	return !ok || err != nil || caught&(1<<(s-1)) != 0
}
