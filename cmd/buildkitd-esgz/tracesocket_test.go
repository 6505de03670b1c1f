package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/util/tracing"
	"github.com/stretchr/testify/require"
	tracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// The socket opens wherever it is to be, and leaves nothing.
func TestTraceSocket(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, path string){
		"no directory": func(*testing.T, string) {},
		"socket of a killed daemon": func(t *testing.T, path string) {
			require.NoError(t, os.Mkdir(filepath.Dir(path), 0o700))
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
			require.NoError(t, err)
			l.SetUnlinkOnClose(false)
			require.NoError(t, l.Close())
			require.FileExists(t, path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(filepath.Dir(socketPath(t)), "root", "otel-grpc.sock")
			prepare(t, path)
			export(t, path, path)
		})
	}
	t.Run("long path", func(t *testing.T) {
		root := filepath.Dir(socketPath(t))
		dir := filepath.Join(root, strings.Repeat("d", 200))
		short := filepath.Join(root, "short")
		require.NoError(t, os.Symlink(dir, short))
		export(t, filepath.Join(dir, "otel-grpc.sock"), filepath.Join(short, "otel-grpc.sock"))
	})
}

// export sends a span to the socket, by a path that has room in an address.
func export(t *testing.T, path, short string) {
	t.Helper()
	socket, err := startTraceSocket(path, tracing.MultiSpanExporter{})
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o666), info.Mode().Perm())
	conn, err := grpc.NewClient("unix://"+short, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	_, err = tracev1.NewTraceServiceClient(conn).Export(t.Context(), &tracev1.ExportTraceServiceRequest{})
	require.NoError(t, err)
	socket.stop()
	require.NoFileExists(t, path)
}

func TestTraceSocketRefuses(t *testing.T) {
	path := t.TempDir()
	_, err := startTraceSocket(path, nil)
	require.ErrorContains(t, err, fmt.Sprintf("otel.socketPath (--otel-socket-path) %s: ", path))
}

// A root directory may be on a filesystem that has no sockets.
func TestTraceSocketUnsupported(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount("devpts", dir, "devpts", 0, "")) // every kernel has it, and it has no sockets
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	path := filepath.Join(dir, "otel-grpc.sock")
	_, err := startTraceSocket(path, nil)
	require.EqualError(t, err, "otel.socketPath (--otel-socket-path) "+path+
		": bind: operation not permitted; if the filesystem has no sockets, choose a path on another one")
}
