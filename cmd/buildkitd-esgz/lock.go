package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockRoot makes sure that no other daemon uses the state directory, which it
// creates if need be. Lock and name are those of buildkitd: one of each must
// not run on the same state either.
func lockRoot(root string) (release func(), err error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("state directory (--root): %w", err)
	}
	path := filepath.Join(root, "buildkitd.lock")
	for {
		file, err := lockFile(path)
		if err != nil {
			return nil, err
		}
		if same(file, path) {
			// Removed while still locked: once unlocked, the file may be
			// another daemon's.
			return func() {
				os.Remove(path)
				file.Close()
			}, nil
		}
		// The former owner removed the file between our opening and locking it.
		file.Close()
	}
}

// lockPatience is how long a start waits for the lock. A daemon that is killed
// while it starts a process has left the lock to that, until the process runs its
// program.
const lockPatience = 2 * time.Second

func lockFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of the state directory: %w", err)
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(10 * time.Millisecond) {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			break
		}
	}
	file.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%s is locked: another daemon is running on this state directory; stop it, or choose another with --root", path)
	}
	return nil, fmt.Errorf("locking %s: %w", path, err)
}

// same says whether path still names the open file.
func same(file *os.File, path string) bool {
	opened, err := file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(opened, named)
}
