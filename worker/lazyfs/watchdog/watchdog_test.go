package watchdog

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestClose closes a watchdog twice.
func TestClose(t *testing.T) {
	w, err := Start("fuse.none", t.TempDir(), nil)
	require.NoError(t, err)
	require.False(t, w.Ended())
	w.Close()
	require.True(t, w.Ended())
	w.Close()

}

// TestKilled kills a watchdog, in whose place another one starts until it is closed.
func TestKilled(t *testing.T) {
	again := make(chan error, 1)
	w, err := Start("fuse.none", t.TempDir(), func(err error) { again <- err })
	require.NoError(t, err)
	first := w.process.Load()
	require.NoError(t, first.Kill())
	select {
	case err := <-again:
		require.NoError(t, err)
	case <-time.After(time.Minute):
		require.Fail(t, "none is started")
	}
	second := w.process.Load()
	require.NotEqual(t, first.Pid, second.Pid)
	require.NoError(t, second.Signal(unix.Signal(0)))
	require.False(t, w.Ended())

	require.NoError(t, second.Kill())
	w.Close()
	require.True(t, w.Ended())
}

// TestSignals sends a watchdog what is sent to all processes of a service.
func TestSignals(t *testing.T) {
	w, err := Start("fuse.none", t.TempDir(), nil)
	require.NoError(t, err)
	group, err := unix.Getpgid(w.process.Load().Pid)
	require.NoError(t, err)
	require.NotEqual(t, unix.Getpgrp(), group, "it is in the process group of the daemon")
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2} {
		require.NoError(t, w.process.Load().Signal(s))
	}
	require.Never(t, w.Ended, 200*time.Millisecond, time.Millisecond)
	w.Close()
}
