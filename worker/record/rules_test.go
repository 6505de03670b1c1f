package record

import (
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// The rules are tested with a clock that stands still while anybody computes.
func TestWait(t *testing.T) {
	const s, never = time.Second, -1
	for _, test := range []struct {
		name   string
		opts   Options
		starts time.Duration   // the first access
		reads  []time.Duration // of new files, after that
		ready  time.Duration   // if not zero, like exits
		exits  time.Duration
		end    End
		after  time.Duration
		busy   bool
	}{
		{"idle", Options{Period: 10 * s, Idle: 2 * s}, s, nil, 0, 0, EndIdle, 3 * s, false},
		{"idle starts again", Options{Period: never, Idle: 2 * s}, 0, []time.Duration{s, 2 * s, 3 * s, 4900 * time.Millisecond}, 0, 0, EndIdle, 6900 * time.Millisecond, false},
		{"period", Options{Period: 10 * s, Idle: never}, s, nil, 0, 0, EndPeriod, 11 * s, false},
		{"period of one that reads on", Options{Period: 3 * s, Idle: 2 * s}, 0, []time.Duration{s, 2 * s}, 0, 0, EndPeriod, 3 * s, true},
		{"period that was short", Options{Period: s, Idle: 2 * s}, 0, []time.Duration{s / 2}, 0, 0, EndPeriod, s, false},
		{"slow start", Options{Period: s, Idle: never}, time.Minute, nil, 0, 0, EndPeriod, time.Minute + s, false},
		{"ready", Options{Period: never, Idle: never}, 0, nil, time.Minute, 0, EndReady, time.Minute, false},
		{"exit", Options{Period: never, Idle: never}, 0, nil, 0, time.Minute, EndExit, time.Minute, false},
		{"exit before the first access", Options{Period: s, Idle: s}, time.Hour, nil, 0, time.Minute, EndExit, time.Minute, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				w := &watch{root: -1, seen: make(chan struct{})}
				ready, exited := make(chan struct{}), make(chan struct{})
				read := func() { w.newest.Store(time.Now().UnixNano()) }
				time.AfterFunc(test.starts, func() { read(); close(w.seen) })
				for _, at := range test.reads {
					time.AfterFunc(test.starts+at, read)
				}
				if test.ready > 0 {
					time.AfterFunc(test.ready, func() { close(ready) })
				}
				if test.exits > 0 {
					time.AfterFunc(test.exits, func() { close(exited) })
				}
				end := run{opts: test.opts, after: time.After}.wait(w, make(chan syscall.Signal), ready, exited)
				if after := time.Since(begin); after != test.after {
					t.Errorf("after %v, want %v", after, test.after)
				}
				if end != test.end {
					t.Errorf("ended by %s, want %s", end, test.end)
				}
				if busy := end == EndPeriod && test.opts.busy(w, time.Now()); busy != test.busy {
					t.Errorf("busy: %v", busy)
				}
			})
		})
	}
}

// A recording that fails before the first access ends the workload: no other rule
// would.
func TestWaitEndsWithTheWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &watch{root: -1, seen: make(chan struct{}), ended: make(chan struct{})}
		time.AfterFunc(time.Second, func() { close(w.ended) })
		exited := make(chan struct{})
		time.AfterFunc(time.Hour, func() { close(exited) })
		if end := (run{opts: Options{Period: time.Second, Idle: time.Second}, after: time.After}).wait(w, make(chan syscall.Signal), nil, exited); end != EndWatch {
			t.Errorf("ended by %s, want %s", end, EndWatch)
		}
	})
}

func TestStop(t *testing.T) {
	for _, test := range []struct {
		name    string
		obeys   syscall.Signal // what ends it, none if zero
		listens bool           // its signals are taken
		grace   time.Duration
		after   time.Duration
	}{
		{"by TERM", syscall.SIGTERM, true, -1, 0},
		{"by KILL", syscall.SIGKILL, true, time.Minute, time.Minute},
		{"by neither", 0, true, time.Minute, time.Minute + killTime},
		{"nobody takes signals", 0, false, time.Minute, 2 * killTime},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				signals, exited, cancelled := make(chan syscall.Signal), make(chan struct{}), make(chan struct{})
				go func() {
					defer close(exited)
					in := signals
					if !test.listens {
						in = nil
					}
					for {
						select {
						case s := <-in:
							if s == test.obeys {
								return
							}
						case <-cancelled:
							return
						}
					}
				}()
				run{after: time.After}.stop(0, test.grace, signals, exited, func() { close(cancelled) })
				if after := time.Since(begin); after != test.after {
					t.Errorf("after %v, want %v", after, test.after)
				}
			})
		})
	}
}
