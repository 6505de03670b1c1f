package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/tracing/transform"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	tracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// traceSocket takes spans from programs in build containers, which see it as
// /dev/otel-grpc.sock.
type traceSocket struct {
	tracev1.UnimplementedTraceServiceServer
	exporter sdktrace.SpanExporter
	server   *grpc.Server
	dir      *os.File // of the socket
	done     chan struct{}
}

// startTraceSocket makes the directory of the path as well, and replaces the
// socket of a daemon that was killed.
func startTraceSocket(path string, exporter sdktrace.SpanExporter) (_ *traceSocket, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("otel.socketPath (--otel-socket-path) %s: %w", path, err)
		}
	}()
	if err := os.MkdirAll(filepath.Dir(path), 0o770); err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	l, err := listenIn(dir, filepath.Base(path))
	if err != nil {
		dir.Close()
		return nil, err
	}
	t := &traceSocket{exporter: exporter, server: grpc.NewServer(), dir: dir, done: make(chan struct{})}
	tracev1.RegisterTraceServiceServer(t.server, t)
	go func() {
		defer close(t.done)
		if err := t.server.Serve(l); err != nil {
			bklog.L.WithError(err).Error("trace socket")
		}
	}()
	return t, nil
}

// listenIn listens on a unix socket in a directory that stays open as long. The
// address of a socket has room for 107 bytes, and a root directory may have a
// longer path; the path of its descriptor is short.
func listenIn(dir *os.File, name string) (net.Listener, error) {
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
	if err := unix.Unlink(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if bind := new(os.SyscallError); errors.As(err, &bind) {
		// The rest of the error is the path of the descriptor.
		if unsupported(bind.Err) {
			return nil, fmt.Errorf("%w; if the filesystem has no sockets, choose a path on another one", bind)
		}
		return nil, bind
	}
	if err != nil {
		return nil, err
	}
	// Build containers may run as anybody.
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// unsupported tells the errors of filesystems that cannot make a socket.
func unsupported(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

// stop closes the socket, which removes it.
func (t *traceSocket) stop() {
	t.server.Stop()
	<-t.done
	t.dir.Close()
}

// Export implements OpenTelemetry's collector.
func (t *traceSocket) Export(ctx context.Context, req *tracev1.ExportTraceServiceRequest) (*tracev1.ExportTraceServiceResponse, error) {
	if err := t.exporter.ExportSpans(ctx, transform.Spans(req.GetResourceSpans())); err != nil {
		return nil, err
	}
	return &tracev1.ExportTraceServiceResponse{}, nil
}
