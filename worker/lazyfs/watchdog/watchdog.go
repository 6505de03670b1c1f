// Package watchdog aborts the FUSE connections of a process that was killed. The
// lazy worker starts one for the mounts below its root.
//
// A process that serves a FUSE mount and uses it as well, as BuildKit does when it
// copies a file from a lazy layer, can otherwise not be killed. A thread that waits
// for the answer to a request that has been received is not interruptible. The
// thread keeps the files of the process open, /dev/fuse among them, and the kernel
// ends a connection, and with it the wait, when nobody has it open. The threads that
// would answer are gone. The process stays a zombie with its locks, and whoever waits
// for its end waits forever: a service manager, a container engine.
//
// The watchdog is a process of its own, and starts from the same executable. It does
// not help when it is killed as well, as when all processes of a control group are.
package watchdog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const (
	// processName is the first argument of a watchdog.
	processName = "buildkitd-esgz-watchdog"
	// deathSignal is what it gets when the process that started it dies. Nobody sends
	// this real-time signal to all processes of a service.
	deathSignal = unix.Signal(42)
)

// A Watchdog runs until Close. It is safe for concurrent use.
type Watchdog struct {
	process *os.Process
	input   io.Closer
	ended   <-chan struct{}
}

// Start starts one for the FUSE mounts of a type below a directory. It is ready
// when Start returns.
func Start(fsType, dir string) (*Watchdog, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{processName, fsType, dir}
	cmd.Env = []string{"GOMAXPROCS=1"}
	// Who kills the process group of the daemon does not kill a session of its own.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: deathSignal, Setsid: true}
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, input.Close())
	}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		// The signal comes when the thread ends that started the process. A thread
		// with a locked goroutine does not end before the goroutine.
		runtime.LockOSThread()
		err := cmd.Start()
		if err == nil {
			_, err = bufio.NewReader(output).ReadByte()
		}
		started <- err
		_ = cmd.Wait()
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("start the watchdog of lazy mounts: %w", err), input.Close())
	}
	return &Watchdog{cmd.Process, input, ended}, nil
}

// Ended says whether the watchdog has ended: it was closed, or killed.
func (w *Watchdog) Ended() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

// Close ends the watchdog. Mounts stay as they are.
func (w *Watchdog) Close() {
	_ = w.input.Close() // it is closed already if the watchdog was killed
	<-w.ended
}

// init takes the place of main in a watchdog. The packages that this one does not
// import, which are most of the daemon's memory, are not initialized yet.
func init() {
	if len(os.Args) == 3 && os.Args[0] == processName {
		watch(os.Args[1], os.Args[2])
		os.Exit(0)
	}
}

func watch(fsType, dir string) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, deathSignal)
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	if _, err := os.Stdout.WriteString("\n"); err != nil {
		return
	}
	select {
	case <-died:
		abort(fsType, dir, closed)
	case <-closed:
	}
}

// abort ends the connections until the process that died has closed its files. A new
// process may serve mounts in the same places from then on. There is no one to tell of
// errors: a mount that is gone has no connection.
func abort(fsType, dir string, closed <-chan struct{}) {
	below := mountinfo.PrefixFilter(dir)
	mounts, _ := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		skip, stop = below(m)
		return skip || m.FSType != fsType, stop
	})
	for _, m := range mounts {
		select {
		case <-closed:
			return
		default:
		}
		// Forcing aborts the connection, whether or not the mount can be removed.
		_ = unix.Unmount(m.Mountpoint, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
}
