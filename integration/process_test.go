package integration

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
)

// A process is a server, with its output in a file.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // set before done is closed
}

// spawn starts processes that end with this one, also when the test binary
// panics on its deadline and no cleanup runs. The kernel sends that signal when
// the thread that started them ends, so it is always the same thread.
var spawn = func() func(*exec.Cmd) error {
	type start struct {
		cmd *exec.Cmd
		err chan error
	}
	starts := make(chan start)
	go func() {
		runtime.LockOSThread()
		for s := range starts {
			s.err <- s.cmd.Start()
		}
	}()
	return func(cmd *exec.Cmd) error {
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
		s := start{cmd, make(chan error)}
		starts <- s
		return <-s.err
	}
}()

func startProcess(dir, name string, cmd *exec.Cmd) (*process, error) {
	p := &process{name: name, cmd: cmd, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := spawn(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// stop asks the process to end and kills it when it does not.
func (p *process) stop() error {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(20 * time.Second):
		p.kill()
		return fmt.Errorf("%s did not end when asked to, and was killed", p.name)
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// untilReady polls until ready says yes, or the process has ended.
func (p *process) untilReady(ready func() bool) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended: %v\n%s", p.name, p.err, p.tail())
		case <-time.After(20 * time.Millisecond):
			if ready() {
				return nil
			}
		}
	}
	return fmt.Errorf("%s is not ready\n%s", p.name, p.tail())
}

func (p *process) tail() string {
	const lines = 60
	log, _ := os.ReadFile(p.log)
	all := strings.Split(string(log), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// serve runs a server for as long as the test, and shows its log when the test
// failed.
func serve(t *testing.T, dir, name string, cmd *exec.Cmd, ready func() bool) *process {
	t.Helper()
	p, err := startProcess(dir, name, cmd)
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", p.name, p.tail())
		}
	})
	require.NoError(t, p.untilReady(ready))
	return p
}

// run runs a command to its end, and fails the test when it fails.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := output(t, exec.Command(tool(name), args...))
	require.NoError(t, err)
	return out
}

// output returns what the command printed. The error holds what it complained
// of.
func output(t *testing.T, cmd *exec.Cmd) (string, error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// tool prefers what hack/tools built to what the system has.
func tool(name string) string {
	if built := filepath.Join(bin, name); fileExists(built) {
		return built
	}
	return name
}

func fileExists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// tempDir is shorter than t.TempDir, since the path of a unix socket holds 107
// bytes, and copes with what a killed daemon leaves mounted.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "esgz")
	require.NoError(t, err)
	t.Cleanup(func() {
		// podman's cleanup may still be at work when podman has ended.
		for range 50 {
			if err = removeAll(dir); err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Error(err)
	})
	return dir
}

// removeAll removes a directory with all that is mounted in it.
func removeAll(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	// The last one mounted may lie on or below an earlier one.
	for _, m := range slices.Backward(mounts) {
		if err := syscall.Unmount(m.Mountpoint, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return os.RemoveAll(dir)
}

// eventually polls until yes says so. Otherwise the test fails with the reason.
func eventually(t *testing.T, yes func() bool, reason func() string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !yes(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.Fail(t, "waited too long", reason())
		}
	}
}

// freePort is a loopback port that nobody listened on a moment ago.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
