package integration

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// serve stops a server when the test ends, and shows its log when the test failed.
func serve(t *testing.T, p *harness.Process, err error) {
	t.Helper()
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("its log:\n%s", p.Tail())
		}
	})
}

// run runs a command to its end, and fails the test when it fails.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := output(t, exec.Command(bin.Path(name), args...))
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
			if err = harness.RemoveAll(dir); err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Error(err)
	})
	return dir
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
