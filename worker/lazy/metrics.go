package lazy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/blob"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// metrics is what Prometheus is told. What the parts count already is read from
// them when it asks.
type metrics struct {
	waiting prometheus.Histogram
	closed  reads // of layers that are no longer mounted; Layers.mu guards it
}

// reads counts what reads of layers came to.
type reads struct{ hits, misses, corrupt, copied int64 }

func (r *reads) add(stats store.Stats) {
	r.hits += stats.Hits
	r.misses += stats.Misses
	r.corrupt += stats.Corrupt
	r.copied += stats.Copied
}

func newMetrics() *metrics {
	return &metrics{waiting: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "buildkitd_esgz_lazy_read_wait_seconds",
		Help:    "Time that reads of lazy layers waited for a registry.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 16), // to half a minute
	})}
}

func (m *metrics) waited(d time.Duration) { m.waiting.Observe(d.Seconds()) }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("buildkitd_esgz_lazy_"+name, help, labels, nil)
}

var (
	requests = describe("requests_total", "Requests to registries and their storage.")
	received = describe("bytes_total", "Bytes that came from registries.")
	retries  = describe("retries_total", "Requests that failed and were made again.")
	failures = describe("failures_total", "Ranges that could not be had.")
	running  = describe("connections", "Requests that are under way, by priority.", "priority")
	hits     = describe("read_hits_total", "Reads of mounted layers that found their chunks.")
	misses   = describe("read_misses_total", "Reads of mounted layers that waited for chunks.")
	corrupt  = describe("verification_failures_total", "Chunks of mounted layers that were not what their digest says.")
	copied   = describe("copied_bytes_total", "Bytes of mounted layers that came from other layers.")
	layers   = describe("layers", "Mounted layers, by whether all of it is here.", "state")
)

// Describe implements prometheus.Collector.
func (l *Layers) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requests, received, retries, failures, running, hits, misses, corrupt, copied, layers} {
		ch <- d
	}
	l.waiting.Describe(ch)
}

// Collect implements prometheus.Collector.
func (l *Layers) Collect(ch chan<- prometheus.Metric) {
	l.collectLine(ch)
	l.collectLayers(ch)
	l.waiting.Collect(ch)
}

func (l *Layers) collectLine(ch chan<- prometheus.Metric) {
	stats := l.line.Stats()
	count(ch, requests, stats.Requests)
	count(ch, received, stats.Bytes)
	count(ch, retries, stats.Retries)
	count(ch, failures, stats.Failures)
	for p, n := range stats.Running {
		ch <- prometheus.MustNewConstMetric(running, prometheus.GaugeValue, float64(n), blob.Priority(p).String())
	}
}

func (l *Layers) collectLayers(ch chan<- prometheus.Metric) {
	states := map[string]int{"complete": 0, "partial": 0}
	// With the lock held, so that no layer is closed and counted twice, or not
	// at all: counters never go down.
	l.mu.Lock()
	sum := l.closed
	for _, mounted := range l.mounted {
		sum.add(mounted.Stats())
		if mounted.Complete() {
			states["complete"]++
		} else {
			states["partial"]++
		}
	}
	l.mu.Unlock()
	count(ch, hits, sum.hits)
	count(ch, misses, sum.misses)
	count(ch, corrupt, sum.corrupt)
	count(ch, copied, sum.copied)
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(layers, prometheus.GaugeValue, float64(n), state)
	}
}

func count(ch chan<- prometheus.Metric, d *prometheus.Desc, n int64) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n))
}
