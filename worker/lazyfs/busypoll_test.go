package lazyfs

import (
	"io/fs"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestBusyPoll(t *testing.T) {
	severalProcessors(t)
	whole, partial := layerOf(), layerOf()
	whole.whole.Store(true)
	var clock fakeClock
	for _, c := range []struct {
		name  string
		layer Layer
		since time.Duration // the last answer
		polls bool
	}{
		{"requests one after another", whole, busyPollGap - 1, true},
		{"a request now and then", whole, busyPollGap, false},
		{"contents are missing", partial, 0, false},
	} {
		b := busyPoll{layer: c.layer, now: clock.now}
		b.received()
		require.False(t, b.begin(), "before the first answer")
		b.done()
		clock.forward(c.since)
		b.received()
		require.Equal(t, c.polls, b.begin(), c.name)
	}

	b := busyPoll{layer: whole, now: clock.now, worth: true}
	require.True(t, b.begin())
	clock.forward(busyPollTime)
	require.True(t, b.again())
	clock.forward(1)
	require.False(t, b.again())

	runtime.GOMAXPROCS(1)
	require.False(t, b.begin(), "others need the only processor")
}

// severalProcessors lets two threads run Go code during a test if there was one.
func severalProcessors(t *testing.T) {
	n := runtime.GOMAXPROCS(0)
	t.Cleanup(func() { runtime.GOMAXPROCS(n) })
	runtime.GOMAXPROCS(max(n, 2))
}

// Complete layers are walked while requests are polled for, and afterwards.
func TestBusyPollMounted(t *testing.T) {
	severalProcessors(t)
	layer := layerOf(dir("a"), file("a/b", "1"), dir("a/c"), file("a/c/d", "2"))
	layer.whole.Store(true)
	var clock fakeClock
	at := mounted(t, layer, Options{now: clock.now})
	walk := func() {
		names := 0
		require.NoError(t, filepath.WalkDir(at, func(_ string, d fs.DirEntry, err error) error { names++; return err }))
		require.Equal(t, 5, names)
		require.Equal(t, "2", read(t, at, "a/c/d"))
	}
	for range 4 {
		walk()
		require.NoError(t, unix.Statfs(at, new(unix.Statfs_t))) // which the kernel always asks for
		polls := clock.looks.Load() + 1000                      // many more than there are requests
		require.Eventually(t, func() bool { return clock.looks.Load() > polls }, soon, time.Millisecond)
		forget(t)
		walk()
		clock.forward(2 * busyPollTime)
	}
}
