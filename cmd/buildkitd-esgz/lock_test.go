package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLockRoot(t *testing.T) {
	root := filepath.Join(t.TempDir(), "new", "root")
	release, err := lockRoot(root)
	require.NoError(t, err)
	_, err = lockRoot(root)
	require.ErrorContains(t, err, "another daemon is running on this state directory; stop it, or choose another with --root")

	release()
	left, err := os.ReadDir(root)
	require.NoError(t, err)
	require.Empty(t, left)

	release, err = lockRoot(root)
	require.NoError(t, err)
	release()
}

// What a daemon that was killed leaves behind does not keep the next one out.
func TestLockRootAfterCrash(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(root, "buildkitd.lock"), nil, 0o600))
	release, err := lockRoot(root)
	require.NoError(t, err)
	release()
}

// A process that a killed daemon was starting has the lock for a moment.
func TestLockRootIsWaitedFor(t *testing.T) {
	root := t.TempDir()
	release, err := lockRoot(root)
	require.NoError(t, err)
	time.AfterFunc(50*time.Millisecond, release)
	release, err = lockRoot(root)
	require.NoError(t, err)
	release()
}
