package main

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/appcontext"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"
)

// A failing listener fails once it is told to.
type failing struct{ fail chan error }

func (l failing) Accept() (net.Conn, error) { return nil, <-l.fail }
func (l failing) Close() error              { return nil }
func (l failing) Addr() net.Addr            { return &net.UnixAddr{Name: "failing", Net: "unix"} }

// Streams stay open as long as their clients like, so that a daemon that has lost
// a listener waits for none of them for long.
func TestServeListenerFails(t *testing.T) {
	appcontext.Shutdown().Done() // starts a goroutine that never ends, and makes a channel
	synctest.Test(t, func(t *testing.T) {
		server := grpc.NewServer()
		healthv1.RegisterHealthServer(server, health.NewServer())
		sound, broken := bufconn.Listen(1<<10), failing{make(chan error, 1)}
		served := make(chan error, 1)
		go func() { served <- serve(t.Context(), server, newDrain(), []net.Listener{sound, broken}) }()

		conn, err := grpc.NewClient("passthrough:sound",
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return sound.DialContext(ctx) }))
		require.NoError(t, err)
		defer conn.Close()
		stream, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
		require.NoError(t, err)
		_, err = stream.Recv()
		require.NoError(t, err)

		cause := errors.New("no more files")
		start := time.Now()
		broken.fail <- cause
		require.ErrorIs(t, <-served, cause)
		require.LessOrEqual(t, time.Since(start), 10*time.Second)
		_, err = stream.Recv()
		require.Error(t, err)
	})
}

// A stream without a build does not keep a daemon that is told to end.
func TestServeEnds(t *testing.T) {
	appcontext.Shutdown().Done()
	synctest.Test(t, func(t *testing.T) {
		server := grpc.NewServer()
		healthv1.RegisterHealthServer(server, health.NewServer())
		l := bufconn.Listen(1 << 10)
		ctx, end := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- serve(ctx, server, newDrain(), []net.Listener{l}) }()

		conn := dialControl(t, l).conn
		stream, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
		require.NoError(t, err)
		_, err = stream.Recv()
		require.NoError(t, err)

		end()
		time.Sleep(time.Hour)
		synctest.Wait()
		select {
		case err := <-served:
			require.NoError(t, err)
		default:
			server.Stop()
			require.Fail(t, "still serving")
		}
		_, err = stream.Recv()
		require.Error(t, err)
	})
}

// A daemon that is told to end while it starts ends without an error.
func TestServeEndsBeforeItBegins(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	end()
	for range 100 {
		require.NoError(t, serve(ctx, grpc.NewServer(), newDrain(), []net.Listener{bufconn.Listen(1), bufconn.Listen(1)}))
	}
}

// TestServeListenerFails of a whole daemon, whose client keeps a session open.
func TestDaemonListenerFails(t *testing.T) {
	needsDaemon(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	require.NoError(t, err)
	defer file.Close()
	d := newDaemon(t, filepath.Dir(socketPath(t)), "--addr", "fd://")
	activate(d.cmd, file)
	d.start(t)
	c := d.connect(t)
	s, err := session.NewSession(t.Context(), "")
	require.NoError(t, err)
	running := make(chan error, 1)
	go func() { running <- s.Run(t.Context(), c.Dialer()) }()
	require.Equal(t, "hello\n", solve(t, c)) // so that the session has begun as well

	require.NoError(t, syscall.Shutdown(int(file.Fd()), syscall.SHUT_RDWR))
	select {
	case err := <-d.exited:
		require.Error(t, err)
		require.Contains(t, d.log.String(), "serving on 127.0.0.1")
	case <-time.After(30 * time.Second):
		t.Fatal("still running")
	}
	<-running
}
