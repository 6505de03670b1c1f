package record

import (
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// A file that has a lease cannot be opened for its event. Where the kernel has
// no FAN_REPORT_FD_ERROR, read then fails like that of an empty queue.
func TestLeasedFileIsLost(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: fanotify")
	}
	dir := t.TempDir()
	check(t, mount.All([]mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}, dir))
	t.Cleanup(func() { check(t, mount.Unmount(dir, 0)) })
	for _, test := range []struct {
		name string
		open func() (*events, error)
	}{
		{"error of the event", func() (*events, error) { return openEvents(dir, unlimited) }},
		{"error of read", func() (*events, error) {
			fd, err := unix.FanotifyInit(unlimited|unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK)
			if err != nil {
				return nil, err
			}
			e := &events{fd: fd, buffer: make([]byte, batch*unsafe.Sizeof(unix.FanotifyEventMetadata{}))}
			return e, unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, opened, unix.AT_FDCWD, dir)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			leased, ordinary := filepath.Join(dir, "leased"), filepath.Join(dir, "ordinary")
			for _, name := range []string{leased, ordinary} {
				check(t, os.WriteFile(name, nil, 0o600))
			}
			e, err := test.open()
			check(t, err)
			defer e.close()
			fd, err := unix.Open(leased, unix.O_WRONLY|unix.O_CLOEXEC, 0)
			check(t, err)
			defer unix.Close(fd)
			_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK)
			check(t, err)
			other, err := unix.Open(ordinary, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			check(t, err)
			unix.Close(other)
			var got, lost int
			for more := true; more; {
				var n int
				more, n, err = e.next(func(of event) { got++; unix.Close(of.fd) })
				check(t, err)
				lost += n
			}
			if got != 1 || lost != 1 {
				t.Errorf("%d events and %d lost, want one of each", got, lost)
			}
		})
	}
}

// An event that cannot be opened leaves none of the others open.
func TestTracepointsAllOrNone(t *testing.T) {
	points, err := findTracepoints()
	if err != nil {
		t.Skip("no tracepoints: ", err)
	}
	points = append(points, tracepoint{name: "none", id: 1 << 40})
	before := perfEvents(t)
	if err := holdOpen(points); err == nil {
		t.Fatal("a tracepoint that there is not was opened")
	}
	if after := perfEvents(t); after != before {
		t.Errorf("%d perf events are open, and were %d", after, before)
	}
}

func perfEvents(t *testing.T) (n int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	check(t, err)
	for _, fd := range fds {
		if target, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && target == "anon_inode:[perf_event]" {
			n++
		}
	}
	return n
}
