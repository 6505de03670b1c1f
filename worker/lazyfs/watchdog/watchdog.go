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
	"sync"
	"sync/atomic"
	"syscall"
	"time"

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

// Two processes are started at least minPause apart. The pause doubles up to maxPause as
// long as starts fail, or each process is killed before it has run for maxPause.
const (
	minPause = time.Second
	maxPause = time.Minute
)

// A Watchdog runs until Close. When its process is killed, another one is started. It is
// safe for concurrent use.
type Watchdog struct {
	args    []string
	stdin   *os.File // of the processes, which end when it does
	process atomic.Pointer[os.Process]
	closing chan struct{}
	close   func()
	ended   chan struct{}
}

// Start starts one for the FUSE mounts of a type below a directory. It is ready
// when Start returns. Whenever its process was killed, restarted is called once: with nil
// when another process is ready, or with the error of the first start that failed, after
// which others are tried until Close.
func Start(fsType, dir string, restarted func(error)) (*Watchdog, error) {
	stdin, input, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	w := &Watchdog{
		args: []string{processName, fsType, dir}, stdin: stdin,
		closing: make(chan struct{}), ended: make(chan struct{}),
	}
	w.close = sync.OnceFunc(func() { close(w.closing); input.Close() })
	started := make(chan error, 1)
	go w.run(func(err error) { started <- err }, restarted)
	if err := <-started; err != nil {
		w.Close()
		return nil, fmt.Errorf("start the watchdog of lazy mounts: %w", err)
	}
	return w, nil
}

// run starts processes, one after the other, until Close. The result of the first start is
// for started.
func (w *Watchdog) run(started, restarted func(error)) {
	defer close(w.ended)
	defer w.stdin.Close()
	// The signal comes when the thread ends that started the process. A thread
	// with a locked goroutine does not end before the goroutine.
	runtime.LockOSThread()
	report := started
	var pause time.Duration
	for !w.isClosing() {
		begun := time.Now()
		cmd, err := w.start()
		report(err)
		report = func(error) {} // until a process has run
		if err == nil {
			_ = cmd.Wait()
			report = restarted
		}
		pause = nextPause(pause, time.Since(begun))
		select {
		case <-w.closing:
		case <-time.After(time.Until(begun.Add(pause))):
		}
	}
}

// nextPause is the pause after a process that ran for a time, 0 if it did not start. last
// is the pause before it, 0 if it was the first one.
func nextPause(last, ran time.Duration) time.Duration {
	if ran >= maxPause {
		return minPause
	}
	return min(max(2*last, minPause), maxPause)
}

func (w *Watchdog) isClosing() bool {
	select {
	case <-w.closing:
		return true
	default:
		return false
	}
}

// start starts a process and waits until it is ready.
func (w *Watchdog) start() (*exec.Cmd, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = w.args
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.Stdin = w.stdin
	// Who kills the process group of the daemon does not kill a session of its own.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: deathSignal, Setsid: true}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	w.process.Store(cmd.Process)
	if _, err := bufio.NewReader(output).ReadByte(); err != nil {
		return nil, errors.Join(err, cmd.Wait())
	}
	return cmd, nil
}

// Close ends the watchdog. Mounts stay as they are.
func (w *Watchdog) Close() {
	w.close()
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
