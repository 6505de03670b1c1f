package watchdog

import (
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestClose closes a watchdog twice.
func TestClose(t *testing.T) {
	w, err := Start("fuse.none", t.TempDir(), func(error) {})
	require.NoError(t, err)
	w.Close()
	require.False(t, isRunning(w.process.Load()))
	w.Close()
}

func isRunning(p *os.Process) bool { return p.Signal(unix.Signal(0)) == nil }

// TestKilled kills a watchdog, in whose place another one starts until it is closed.
func TestKilled(t *testing.T) {
	restarted := make(chan error, 10)
	w, err := Start("fuse.none", t.TempDir(), func(err error) { restarted <- err })
	require.NoError(t, err)
	defer w.Close()
	first := w.process.Load()
	require.NoError(t, first.Kill())
	require.NoError(t, await(t, restarted))
	second := w.process.Load()
	require.NotEqual(t, first.Pid, second.Pid)
	require.True(t, isRunning(second))

	require.NoError(t, second.Kill())
	w.Close()
	require.False(t, isRunning(w.process.Load()))
}

// TestRestartFails kills a watchdog while no other can be started. It is reported once,
// and another one starts when it can.
func TestRestartFails(t *testing.T) {
	restarted := make(chan error, 10)
	w, err := Start("fuse.none", t.TempDir(), func(err error) { restarted <- err })
	require.NoError(t, err)
	defer w.Close()
	first := w.process.Load()
	restore := forbidFiles(t)
	require.NoError(t, first.Kill())
	err = await(t, restarted)
	restore()
	require.ErrorIs(t, err, unix.EMFILE)
	require.Eventually(t, func() bool {
		p := w.process.Load()
		return p != first && isRunning(p)
	}, time.Minute, time.Millisecond)
	w.Close()
	require.Empty(t, restarted)
}

// forbidFiles keeps the process of the test from opening files until restore is called.
func forbidFiles(t *testing.T) (restore func()) {
	t.Helper()
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}))
	restore = sync.OnceFunc(func() { assert.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) })
	t.Cleanup(restore)
	return restore
}

func await(t *testing.T, restarted <-chan error) error {
	t.Helper()
	select {
	case err := <-restarted:
		return err
	case <-time.After(time.Minute):
		require.Fail(t, "none is started")
		return nil
	}
}

func TestNextPause(t *testing.T) {
	var pauses []time.Duration
	var pause time.Duration
	for _, ran := range []time.Duration{0, 0, time.Second, 59 * time.Second, 0, 0, 0, 0, time.Minute, 0} {
		pause = nextPause(pause, ran)
		pauses = append(pauses, pause/time.Second)
	}
	require.Equal(t, []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 1, 2}, pauses)
}

// TestSignals sends a watchdog what is sent to all processes of a service.
func TestSignals(t *testing.T) {
	w, err := Start("fuse.none", t.TempDir(), func(error) {})
	require.NoError(t, err)
	defer w.Close()
	process := w.process.Load()
	group, err := unix.Getpgid(process.Pid)
	require.NoError(t, err)
	require.NotEqual(t, unix.Getpgrp(), group, "it is in the process group of the daemon")
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2} {
		require.NoError(t, process.Signal(s))
	}
	require.Never(t, func() bool { return !isRunning(process) }, 200*time.Millisecond, time.Millisecond)
}
