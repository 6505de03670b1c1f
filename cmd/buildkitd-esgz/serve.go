package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	sddaemon "github.com/coreos/go-systemd/v22/daemon"
	"github.com/moby/buildkit/util/appcontext"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/stack"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// newAPIServer returns a server whose calls, besides the usual, pass through
// onCall, and whose builds builds knows.
func newAPIServer(t *telemetry, builds *drain, onCall grpc.UnaryServerInterceptor) *grpc.Server {
	return grpc.NewServer(
		grpc.StatsHandler(t.serverStats()),
		grpc.StatsHandler(builds),
		grpc.ChainUnaryInterceptor(logErrors, grpcerrors.UnaryServerInterceptor, builds.onCall, releaseHeld, explain, onCall),
		grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
	)
}

// lastWords is how long clients may take to end what they do when a listener has
// failed, or when all builds have ended. Sessions stay open as long as their builds,
// and some for ever.
const lastWords = 5 * time.Second

// serve answers on all listeners until ctx ends, which is not an error, or one
// of them fails. At the end of ctx, running builds are waited for, and their clients
// answered; another signal cuts them off. The failure of a listener cuts them off
// after lastWords: whoever restarts the daemon waits for it to end. Other calls, such
// as those that follow the history, may never end, and have lastWords in either case.
func serve(ctx context.Context, server *grpc.Server, builds *drain, listeners []net.Listener) error {
	serving, failed := errgroup.WithContext(ctx)
	for _, l := range listeners {
		serving.Go(func() error {
			bklog.L.Infof("running server on %s", l.Addr())
			err := server.Serve(l)
			if errors.Is(err, grpc.ErrServerStopped) {
				return nil // ctx ended before it began
			}
			if err != nil {
				return fmt.Errorf("serving on %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	notifySystemd(sddaemon.SdNotifyReady)

	<-failed.Done()
	bklog.L.Info("stopping server")
	notifySystemd(sddaemon.SdNotifyStopping)
	if ctx.Err() != nil {
		builds.wait(appcontext.Shutdown())
	}
	stopSoon := time.AfterFunc(lastWords, server.Stop)
	defer stopSoon.Stop()
	stopNow := context.AfterFunc(appcontext.Shutdown(), server.Stop)
	defer stopNow()
	server.GracefulStop()
	return serving.Wait()
}

// notifySystemd tells the service manager, if there is one, about our state.
func notifySystemd(state string) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	notified, err := sddaemon.SdNotify(false, state)
	bklog.L.Debugf("sd_notify %s: notified=%v, err=%v", state, notified, err)
}

// logErrors leaves a trace of failed requests in the daemon's log. Exported
// spans are left out: clients send them all the time.
func logErrors(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	if err == nil || strings.HasSuffix(info.FullMethod, "opentelemetry.proto.collector.trace.v1.TraceService/Export") {
		return resp, err
	}
	bklog.G(ctx).Errorf("%s returned error: %v", info.FullMethod, err)
	if logrus.IsLevelEnabled(logrus.DebugLevel) {
		fmt.Fprintf(os.Stderr, "%+v", stack.Formatter(grpcerrors.FromGRPC(err)))
	}
	return resp, err
}
