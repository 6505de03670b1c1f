package main

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// A builder's builds last until they are let go.
type builder struct {
	controlapi.UnimplementedControlServer
	begun, release chan struct{}
}

func (b builder) Solve(context.Context, *controlapi.SolveRequest) (*controlapi.SolveResponse, error) {
	b.begun <- struct{}{}
	<-b.release
	return &controlapi.SolveResponse{}, nil
}

func (b builder) Info(context.Context, *controlapi.InfoRequest) (*controlapi.InfoResponse, error) {
	return &controlapi.InfoResponse{}, nil
}

// A build that runs when the daemon is to end can make calls, also by another
// connection, and so can its client when it has ended; other builds are refused.
func TestDrain(t *testing.T) {
	for _, leaves := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			d, b := newDrain(), builder{begun: make(chan struct{}), release: make(chan struct{})}
			server := grpc.NewServer(grpc.StatsHandler(d), grpc.UnaryInterceptor(d.onCall))
			controlapi.RegisterControlServer(server, b)
			l := bufconn.Listen(1 << 10)
			served := make(chan error, 1)
			go func() { served <- server.Serve(l) }()
			client, other := dialControl(t, l), dialControl(t, l)
			_, err := other.Info(t.Context(), &controlapi.InfoRequest{})
			require.NoError(t, err) // a connection that builds nothing is not waited for

			solved := make(chan error, 1)
			go func() {
				_, err := client.Solve(t.Context(), &controlapi.SolveRequest{})
				solved <- err
			}()
			<-b.begun
			drained := make(chan struct{})
			go func() {
				defer close(drained)
				d.wait(t.Context())
			}()
			time.Sleep(time.Hour)
			_, err = dialControl(t, l).Info(t.Context(), &controlapi.InfoRequest{})
			require.NoError(t, err)
			_, err = other.Solve(t.Context(), &controlapi.SolveRequest{})
			require.Equal(t, codes.Unavailable, status.Code(err))
			requireOpen(t, drained, "a build runs")

			close(b.release)
			require.NoError(t, <-solved)
			synctest.Wait()
			requireOpen(t, drained, "the client of the build is there")
			_, err = client.Info(t.Context(), &controlapi.InfoRequest{})
			require.NoError(t, err)
			start := time.Now()
			if leaves {
				require.NoError(t, client.conn.Close())
			}
			<-drained
			if leaves {
				require.Zero(t, time.Since(start))
			} else {
				require.Equal(t, lastWords, time.Since(start))
			}
			server.Stop()
			require.NoError(t, <-served)
		})
	}
}

func requireOpen(t *testing.T, c <-chan struct{}, why string) {
	t.Helper()
	select {
	case <-c:
		require.Fail(t, "not waited for", why)
	default:
	}
}

type controlClient struct {
	controlapi.ControlClient
	conn *grpc.ClientConn
}

func dialControl(t *testing.T, l *bufconn.Listener) controlClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:pipe",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return controlClient{controlapi.NewControlClient(conn), conn}
}
