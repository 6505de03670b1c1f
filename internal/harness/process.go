package harness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a server may take to start, and to end. Most take less
// than a second, on a machine that does nothing else.
const patience = time.Minute

// A Process is a server. It has a process group of its own, so that Ctrl-C does
// not reach it: whoever started it stops it. When it ends, what is left of the
// group is killed. Its methods may be called from many goroutines.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // set before done is closed
}

// Start starts a command, with its output appended to NAME.log in a directory,
// and waits until it is ready. The error of a command that does not get ready has
// the end of its log.
func Start(ctx context.Context, dir, name string, cmd *exec.Cmd, ready func() bool) (*Process, error) {
	return start(ctx, dir, name, cmd, func(ctx context.Context) error {
		for !ready() {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
		return nil
	})
}

// start gives ready a context that is done when the process has ended.
func start(ctx context.Context, dir, name string, cmd *exec.Cmd, ready func(context.Context) error) (*Process, error) {
	p := &Process{name: name, log: filepath.Join(dir, name+".log"), cmd: cmd, done: make(chan struct{})}
	if err := p.spawn(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	alive, end := context.WithCancelCause(ctx)
	defer end(nil)
	go func() {
		select {
		case <-p.done:
			end(fmt.Errorf("it ended: %s", cmd.ProcessState))
		case <-alive.Done():
		}
	}()
	if err := ready(alive); err != nil {
		stopped := p.Stop()
		return nil, errors.Join(fmt.Errorf("%s does not get ready: %w\n%s", name, cmp.Or(context.Cause(alive), err), p.Tail()), stopped)
	}
	return p, nil
}

func (p *Process) spawn() error {
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if p.cmd.SysProcAttr == nil {
		p.cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	p.cmd.SysProcAttr.Setpgid = true
	p.cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	s := spawning{p.cmd, make(chan error)}
	spawner <- s
	if err := <-s.err; err != nil {
		return err
	}
	go p.wait()
	return nil
}

// spawner starts processes that end with this one, also when it panics and stops
// nothing. The kernel sends that signal when the thread that started them ends, so
// it is always the same thread.
var spawner = func() chan<- spawning {
	all := make(chan spawning)
	go func() {
		runtime.LockOSThread()
		for s := range all {
			s.err <- s.cmd.Start()
		}
	}()
	return all
}()

type spawning struct {
	cmd *exec.Cmd
	err chan error
}

func (p *Process) wait() {
	// Until Wait has its status, no other group can have its ID.
	for unix.Waitid(unix.P_PID, p.Pid(), nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	_ = syscall.Kill(-p.Pid(), syscall.SIGKILL)
	p.err = p.cmd.Wait()
	close(p.done)
}

// Stop asks the process to end. It kills the process, and returns an error, if
// that takes a minute. It does nothing if the process has ended.
func (p *Process) Stop() error {
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(patience):
		p.Kill()
		return fmt.Errorf("%s did not end when asked to, and was killed", p.name)
	}
}

// Kill gives the process no chance to end by itself. It panics if the process has not
// ended after a minute: a thread of it is stuck in the kernel.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	select {
	case <-p.done:
	case <-time.After(patience):
		panic(fmt.Sprintf("%s, process %d, was killed and has not ended", p.name, p.Pid()))
	}
}

// Signal sends a signal, if the process has not ended.
func (p *Process) Signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err waits until the process has ended, and returns nil if that was with status 0.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Pid is the process's ID, and its group's.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Tail returns the last lines of the log.
func (p *Process) Tail() string {
	const lines = 60
	log, _ := os.ReadFile(p.log)
	all := strings.Split(string(log), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
