package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/pkg/sys"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/tracing/transform"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	tracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// traceSocket takes spans from programs in build containers, which see it as
// /dev/otel-grpc.sock.
type traceSocket struct {
	tracev1.UnimplementedTraceServiceServer
	exporter sdktrace.SpanExporter
	server   *grpc.Server
	done     chan struct{}
}

func startTraceSocket(path string, exporter sdktrace.SpanExporter) (*traceSocket, error) {
	who := self()
	l, err := sys.GetLocalListener(path, who.uid, who.gid)
	if err != nil {
		return nil, fmt.Errorf("otel.socketPath (--otel-socket-path): %w", err)
	}
	// Build containers may run as anybody.
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, fmt.Errorf("otel.socketPath (--otel-socket-path): %w", err)
	}
	t := &traceSocket{exporter: exporter, server: grpc.NewServer(), done: make(chan struct{})}
	tracev1.RegisterTraceServiceServer(t.server, t)
	go func() {
		defer close(t.done)
		if err := t.server.Serve(l); err != nil {
			bklog.L.WithError(err).Error("trace socket")
		}
	}()
	return t, nil
}

// stop closes the socket, which removes it.
func (t *traceSocket) stop() {
	t.server.Stop()
	<-t.done
}

// Export implements OpenTelemetry's collector.
func (t *traceSocket) Export(ctx context.Context, req *tracev1.ExportTraceServiceRequest) (*tracev1.ExportTraceServiceResponse, error) {
	if err := t.exporter.ExportSpans(ctx, transform.Spans(req.GetResourceSpans())); err != nil {
		return nil, err
	}
	return &tracev1.ExportTraceServiceResponse{}, nil
}
