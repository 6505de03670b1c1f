package harness

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// alive is a command, and the end of a pipe that ends when no process of it is
// left.
func alive(t *testing.T, script string, args ...string) (*exec.Cmd, io.Reader) {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	cmd := exec.Command("sh", append([]string{"-c", script, "sh"}, args...)...)
	cmd.ExtraFiles = []*os.File{w}
	return cmd, r
}

// closeWriter leaves the pipe to the command that was started.
func closeWriter(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	require.NoError(t, cmd.ExtraFiles[0].Close())
}

func exists(name string) func() bool {
	return func() bool {
		_, err := os.Stat(name)
		return err == nil
	}
}

func TestStopEndsTheGroup(t *testing.T) {
	for name, end := range map[string]func(*Process){
		"stopped": func(p *Process) { require.NoError(t, p.Stop()) },
		"killed":  (*Process).Kill,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ready := filepath.Join(dir, "ready")
			cmd, pipe := alive(t, `sleep 1000 & touch "$1"; wait`, ready)
			p, err := Start(t.Context(), dir, "server", cmd, exists(ready))
			require.NoError(t, err)
			closeWriter(t, cmd)
			end(p)
			_, err = io.ReadAll(pipe)
			require.NoError(t, err)
			require.Error(t, p.Err(), "it was ended by a signal")
			require.NoError(t, p.Stop(), "it has ended already")
		})
	}
}

func TestFailedStart(t *testing.T) {
	cmd := exec.Command("sh", "-c", "echo the reason >&2; exit 3")
	_, err := Start(t.Context(), t.TempDir(), "server", cmd, func() bool { return false })
	require.ErrorContains(t, err, "server does not get ready: it ended: exit status 3")
	require.ErrorContains(t, err, "the reason")
}

func TestCanceledStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cmd, pipe := alive(t, "echo the reason; exec sleep 1000")
	_, err := Start(ctx, t.TempDir(), "server", cmd, func() bool {
		cancel()
		return false
	})
	require.ErrorIs(t, err, context.Canceled)
	closeWriter(t, cmd)
	_, err = io.ReadAll(pipe)
	require.NoError(t, err)
}

// A server ends with the process that started it, even if that is killed.
func TestParentDies(t *testing.T) {
	const child = "HARNESS_TEST_DIR"
	if dir := os.Getenv(child); dir != "" {
		cmd := exec.Command("sleep", "1000")
		cmd.ExtraFiles = []*os.File{os.NewFile(3, "pipe")}
		_, err := Start(t.Context(), dir, "server", cmd, func() bool { return true })
		require.NoError(t, err)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	parent := exec.Command(os.Args[0], "-test.run=^TestParentDies$")
	parent.Env = append(os.Environ(), child+"="+t.TempDir())
	parent.ExtraFiles = []*os.File{w}
	require.ErrorContains(t, parent.Run(), "killed")
	require.NoError(t, w.Close())
	_, err = io.ReadAll(r)
	require.NoError(t, err)
}

// A daemon that runs is not started again: its answer would pass for the new one's.
func TestDaemonRuns(t *testing.T) {
	dir := t.TempDir()
	p, err := Start(t.Context(), dir, "server", exec.Command("sleep", "1000"), func() bool { return true })
	require.NoError(t, err)
	d := &Daemon{Process: p, Dir: dir, Binary: "false"}
	require.ErrorContains(t, d.Start(t.Context()), "runs already")
	kill := d.Kill
	d.Process = nil
	p.Kill()
	require.ErrorContains(t, d.Start(t.Context()), "it ended: exit status 1")

	d.Process, err = Start(t.Context(), dir, "server", exec.Command("sleep", "1000"), func() bool { return true })
	require.NoError(t, err)
	kill()
	require.ErrorContains(t, d.Err(), "killed")
}
