package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moby/buildkit/util/appcontext"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/tracing"
	"github.com/moby/buildkit/util/tracing/detect"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc/stats"
)

// telemetryPatience is how long the last spans and metrics may take on their
// way out when the daemon stops.
const telemetryPatience = 5 * time.Second

// telemetry is where the daemon's own spans and metrics go. The environment
// says where that is, by the variables of OpenTelemetry.
type telemetry struct {
	tracer *sdktrace.TracerProvider
	meter  *sdkmetric.MeterProvider
	// collector takes the spans of clients and of build containers.
	collector tracing.MultiSpanExporter
}

func newTelemetry(ctx context.Context) (t *telemetry, err error) {
	t = &telemetry{}
	if t.tracer, err = newTracer(ctx); err != nil {
		return nil, fmt.Errorf("traces (OTEL_TRACES_EXPORTER and its like): %w", err)
	}
	if t.collector, err = newCollector(ctx); err != nil {
		return nil, fmt.Errorf("traces (OTEL_TRACES_EXPORTER and its like): %w", err)
	}
	if t.meter, err = newMeter(ctx); err != nil {
		return nil, fmt.Errorf("metrics (OTEL_METRICS_EXPORTER and its like): %w", err)
	}
	return t, nil
}

// serverStats makes every request to the API a span.
func (t *telemetry) serverStats() stats.Handler {
	return tracing.ServerStatsHandler(
		otelgrpc.WithTracerProvider(t.tracer),
		otelgrpc.WithMeterProvider(t.meter),
		otelgrpc.WithPropagators(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})),
	)
}

// shutdown sends what is left, unless the user is in a hurry. The collector is
// closed by the controller.
func (t *telemetry) shutdown() {
	ctx, cancel := context.WithTimeout(appcontext.Shutdown(), telemetryPatience)
	defer cancel()
	if err := errors.Join(t.tracer.Shutdown(ctx), t.meter.Shutdown(ctx)); err != nil {
		bklog.L.WithError(err).Warn("the last spans and metrics may be lost")
	}
}

// An exporter is nil if it could not be made and OTEL_IGNORE_ERROR is set.

func newTracer(ctx context.Context) (*sdktrace.TracerProvider, error) {
	options := []sdktrace.TracerProviderOption{
		sdktrace.WithResource(detect.Resource()),
		sdktrace.WithSyncer(detect.Recorder),
	}
	exporter, err := detect.NewSpanExporter(ctx)
	if err != nil {
		return nil, err
	}
	if exporter != nil && !detect.IsNoneSpanExporter(exporter) {
		options = append(options, sdktrace.WithBatcher(exporter))
	}
	return sdktrace.NewTracerProvider(options...), nil
}

func newCollector(ctx context.Context) (tracing.MultiSpanExporter, error) {
	collector := tracing.MultiSpanExporter{detect.Recorder}
	exporter, err := detect.NewSpanExporter(ctx)
	if err != nil {
		return nil, err
	}
	if exporter != nil && !detect.IsNoneSpanExporter(exporter) {
		collector = append(collector, exporter)
	}
	return collector, nil
}

func newMeter(ctx context.Context) (*sdkmetric.MeterProvider, error) {
	options := []sdkmetric.Option{
		sdkmetric.WithResource(detect.Resource()),
		sdkmetric.WithView(buildDuration()),
	}
	if reader, err := prometheus.New(); err != nil {
		bklog.G(ctx).WithError(err).Error("no Prometheus metrics")
	} else {
		options = append(options, sdkmetric.WithReader(reader))
	}
	exporter, err := detect.NewMetricExporter(ctx)
	if err != nil {
		return nil, err
	}
	if exporter != nil && !detect.IsNoneMetricExporter(exporter) {
		options = append(options, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exporter)))
	}
	return sdkmetric.NewMeterProvider(options...), nil
}

// buildDuration makes the histogram of build times an exponential one, which
// Prometheus stores as one native histogram instead of one series per bucket,
// and keeps everything but the status out of its labels: series multiply with
// each label (moby/buildkit#5777).
func buildDuration() sdkmetric.View {
	return sdkmetric.NewView(
		sdkmetric.Instrument{
			Name: "buildkit.build.duration",
			Kind: sdkmetric.InstrumentKindHistogram,
		},
		sdkmetric.Stream{
			Aggregation:     sdkmetric.AggregationBase2ExponentialHistogram{MaxSize: 160, MaxScale: 20},
			AttributeFilter: attribute.NewAllowKeysFilter("status"),
		},
	)
}
