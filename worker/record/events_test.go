package record

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// A file that has a lease cannot be opened for its event. Where the kernel has
// no FAN_REPORT_FD_ERROR, read then fails like that of an empty queue, and says
// nothing if it has other events to give.
func TestLeasedFileIsLost(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: fanotify")
	}
	dir := t.TempDir()
	check(t, mount.All([]mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}, dir))
	t.Cleanup(func() { check(t, mount.Unmount(dir, 0)) })
	for _, kernel := range []struct {
		name string
		open func(queue uint) (*events, error)
	}{
		{"error of the event", initEvents},
		{"error of read", initOldEvents},
	} {
		for _, order := range [][]string{{"leased", "ordinary"}, {"ordinary", "leased"}, {"ordinary", "leased", "another"}} {
			t.Run(kernel.name+", "+strings.Join(order, " and "), func(t *testing.T) {
				for _, name := range order {
					check(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
				}
				e, err := kernel.open(unlimited)
				check(t, err)
				defer e.close()
				check(t, e.mark(dir))
				for _, name := range order {
					fd, err := unix.Open(filepath.Join(dir, name), unix.O_WRONLY|unix.O_CLOEXEC, 0)
					check(t, err)
					defer unix.Close(fd)
					if name == "leased" {
						_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK)
						check(t, err)
					}
				}
				var got, lost int
				for more := true; more; {
					var n int
					more, n, err = e.next(func(of event) { got++; unix.Close(of.fd) })
					check(t, err)
					lost += n
				}
				if got != len(order)-1 || lost != 1 {
					t.Errorf("%d events and %d lost, want %d and one", got, lost, len(order)-1)
				}
			})
		}
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
