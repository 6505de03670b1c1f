package lazyfs

import (
	"errors"
	"os/exec"
	"slices"

	"golang.org/x/sys/unix"
)

// An unavailable error is that of Mount where FUSE is missing or not permitted. To try
// again does not help, as it does after other errors, such as of too many open files.
type unavailable struct{ error }

func (e unavailable) Unwrap() error { return e.error }

// Unmountable marks the error for callers that have another way to show a layer.
func (unavailable) Unmountable() {}

// unavailableIf marks an error if it has one of some numbers.
func unavailableIf(err error, numbers ...unix.Errno) error {
	if slices.ContainsFunc(numbers, func(n unix.Errno) bool { return errors.Is(err, n) }) {
		return unavailable{err}
	}
	return err
}

// unavailableIfRefused marks an error of running fusermount3 if it is not there, may not
// be run, or has ended by itself.
func unavailableIfRefused(err error) error {
	var ended *exec.ExitError
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, exec.ErrDot) || errors.As(err, &ended) && ended.Exited() {
		return unavailable{err}
	}
	// ENOENT is also for a program whose loader is missing, EPERM and ENOSYS are seccomp's.
	return unavailableIf(err, unix.ENOENT, unix.EACCES, unix.EPERM, unix.ENOSYS, unix.ENOEXEC)
}
