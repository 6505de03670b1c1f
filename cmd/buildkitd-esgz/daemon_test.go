package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"
)

// daemon is a running one, with all that it touches in one directory.
type daemon struct {
	dir    string
	cmd    *exec.Cmd
	log    *bytes.Buffer
	exited chan error
}

// startDaemon starts a daemon that needs nothing but root and runc.
func startDaemon(t *testing.T, args ...string) *daemon {
	t.Helper()
	needsDaemon(t)
	d := newDaemon(t, filepath.Dir(socketPath(t)), args...)
	d.start(t)
	return d
}

func needsDaemon(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts the daemon")
	}
	if os.Geteuid() != 0 {
		t.Skip("the daemon needs root")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("the daemon needs runc")
	}
}

func (d *daemon) start(t *testing.T) {
	t.Helper()
	require.NoError(t, d.cmd.Start())
	go func() { d.exited <- d.cmd.Wait() }()
	t.Cleanup(func() {
		d.cmd.Process.Kill()
		if t.Failed() {
			t.Log(d.log)
		}
	})
}

func newDaemon(t *testing.T, dir string, args ...string) *daemon {
	t.Helper()
	d := &daemon{dir: dir, log: &bytes.Buffer{}, exited: make(chan error, 1)}
	config := filepath.Join(dir, "none.toml")
	require.NoError(t, os.WriteFile(config, nil, 0o600))
	d.cmd = as(t, "daemon", append([]string{
		"--config", config,
		"--root", filepath.Join(dir, "root"),
		"--addr", "unix://" + filepath.Join(dir, "d.sock"),
		"--debugaddr", "unix://" + filepath.Join(dir, "debug.sock"),
		"--containerd-worker=false", "--oci-worker-net=host", "--oci-worker-snapshotter=native",
		"--log-format=json",
	}, args...)...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	return d
}

// connect waits until the daemon answers.
func (d *daemon) connect(t *testing.T) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := client.New(ctx, "unix://"+filepath.Join(d.dir, "d.sock"))
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.Wait(ctx))
	return c
}

// stop ends the daemon with a signal and returns what remains of its files.
func (d *daemon) stop(t *testing.T) []string {
	t.Helper()
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-d.exited:
		require.NoError(t, err, "a daemon that was asked to stop has not failed")
	case <-time.After(30 * time.Second):
		t.Fatal("still running")
	}
	var left []string
	for _, pattern := range []string{"*.sock", "root/*.sock", "root/*.lock"} {
		found, err := filepath.Glob(filepath.Join(d.dir, pattern))
		require.NoError(t, err)
		left = append(left, found...)
	}
	return left
}

func TestDaemon(t *testing.T) {
	d := startDaemon(t)
	c := d.connect(t)

	info, err := c.Info(t.Context())
	require.NoError(t, err)
	require.Equal(t, packageName, info.BuildkitVersion.Package)
	workers, err := c.ListWorkers(t.Context())
	require.NoError(t, err)
	require.Len(t, workers, 1)
	require.Equal(t, info.BuildkitVersion, workers[0].BuildkitVersion)
	require.Equal(t, "native", workers[0].Labels["org.mobyproject.buildkit.worker.snapshotter"])
	require.NotEmpty(t, workers[0].GCPolicy)

	require.Equal(t, "hello\n", solve(t, c))
	require.Contains(t, d.get(t, "/metrics"), "buildkit_build_duration_seconds")
	require.Contains(t, d.get(t, "/debug/cache/store"), "Digest: sha256:")

	second := newDaemon(t, d.dir)
	err = second.cmd.Run()
	require.Error(t, err)
	require.Contains(t, second.log.String(), "another daemon is running on this state directory")
	require.NoError(t, c.Wait(t.Context()), "the first daemon still has its socket")
	require.Contains(t, d.get(t, "/debug/vars"), "memstats")

	require.Empty(t, d.stop(t))
	lines := bufio.NewScanner(d.log)
	for lines.Scan() {
		require.True(t, json.Valid(lines.Bytes()), lines.Text())
	}
}

// solve runs a Dockerfile and returns the file that it makes.
func solve(t *testing.T, c *client.Client) string {
	t.Helper()
	context, out := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(context, "Dockerfile"), []byte("FROM scratch\nCOPY in /out\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(context, "in"), []byte("hello\n"), 0o600))
	mount, err := fsutil.NewFS(context)
	require.NoError(t, err)
	_, err = c.Solve(t.Context(), nil, client.SolveOpt{
		Frontend:    "dockerfile.v0",
		LocalMounts: map[string]fsutil.FS{"context": mount, "dockerfile": mount},
		Exports:     []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}},
	}, nil)
	require.NoError(t, err)
	content, err := os.ReadFile(filepath.Join(out, "out"))
	require.NoError(t, err)
	return string(content)
}

// get asks the debug address.
func (d *daemon) get(t *testing.T, path string) string {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.dir, "debug.sock"))
		},
		DisableKeepAlives: true,
	}}
	response, err := c.Get("http://debug" + path)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode, path)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return string(body)
}

// A daemon that is stopped while it starts leaves nothing behind either.
func TestDaemonStopsRightAfterStart(t *testing.T) {
	d := startDaemon(t, "--save-cache-debug")
	d.connect(t)
	require.Empty(t, d.stop(t))
	require.NotContains(t, d.log.String(), "panic")
}

func TestDaemonNotifiesSystemd(t *testing.T) {
	path := socketPath(t)
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	next := func() string {
		require.NoError(t, l.SetReadDeadline(time.Now().Add(30*time.Second)))
		message := make([]byte, 100)
		n, err := l.Read(message)
		require.NoError(t, err)
		return string(message[:n])
	}
	d := startDaemon(t)
	require.Equal(t, "READY=1", next())
	require.NoError(t, d.cmd.Process.Signal(syscall.SIGTERM))
	require.Equal(t, "STOPPING=1", next())
	require.NoError(t, <-d.exited)
}

// All errors of the start reach the user in one line.
func TestDaemonRefuses(t *testing.T) {
	for args, want := range map[string]string{
		"--oci-worker=false":                                  "no worker: install runc or start containerd",
		"--oci-worker-snapshotter=btrfs":                      `worker.oci.snapshotter (--oci-worker-snapshotter) "btrfs" is unknown`,
		"--oci-worker-platform=a/b/c/d/e":                     "worker.oci: platforms",
		"--oci-worker-net=wifi":                               `invalid network mode: "wifi"`,
		"--oci-worker-proxy-snapshotter-path=/does/not/exist": "--oci-worker-proxy-snapshotter-path",
		"--oci-worker-no-process-sandbox":                     "is for rootless mode only",
		"--addr=/run/x.sock":                                  "did you mean unix:///run/x.sock?",
		"--log-level=loud":                                    `log.level (--log-level, BUILDKITD_LOG_LEVEL) "loud"`,
		"--tlscacert=/does/not/exist":                         "needs grpc.tls.cert and grpc.tls.key",
		"--debugaddr=nonsense":                                "grpc.debugAddress (--debugaddr, BUILDKITD_DEBUGADDR)",
	} {
		t.Run(args, func(t *testing.T) {
			d := startDaemon(t, args)
			select {
			case err := <-d.exited:
				require.Error(t, err)
			case <-time.After(30 * time.Second):
				t.Fatal("started")
			}
			lines := strings.Split(strings.TrimSpace(d.log.String()), "\n")
			last := lines[len(lines)-1]
			require.True(t, strings.HasPrefix(last, programName+": "), last)
			require.Contains(t, last, want)
		})
	}
}
