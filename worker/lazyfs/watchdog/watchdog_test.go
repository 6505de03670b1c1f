package watchdog

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestClose closes a watchdog, and one that was killed.
func TestClose(t *testing.T) {
	w, err := Start("fuse.none", t.TempDir())
	require.NoError(t, err)
	require.False(t, w.Ended())
	w.Close()
	require.True(t, w.Ended())
	w.Close()

	w, err = Start("fuse.none", t.TempDir())
	require.NoError(t, err)
	require.NoError(t, w.process.Kill())
	require.Eventually(t, w.Ended, time.Minute, time.Millisecond)
	w.Close()
}

// TestSignals sends a watchdog what is sent to all processes of a service.
func TestSignals(t *testing.T) {
	w, err := Start("fuse.none", t.TempDir())
	require.NoError(t, err)
	group, err := unix.Getpgid(w.process.Pid)
	require.NoError(t, err)
	require.NotEqual(t, unix.Getpgrp(), group, "it is in the process group of the daemon")
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2} {
		require.NoError(t, w.process.Signal(s))
	}
	require.Never(t, w.Ended, 200*time.Millisecond, time.Millisecond)
	w.Close()
}
