package lazy

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// A counter does not go down when a layer is no longer mounted.
func TestCountersOfClosed(t *testing.T) {
	p := servePrivate(t, 1)
	l := p.open(t, Config{NoPrefetch: true, NoBackgroundFetch: true})
	p.set("a", true, true)
	require.NoError(t, p.fetch(t, l, "a"))
	id, err := l.ID(p.labels(""))
	require.NoError(t, err)
	layer, err := l.acquire(id, p.labels("a"))
	require.NoError(t, err)
	for n := range store.Node(layer.Nodes()) {
		_, _ = layer.ReadAt(t.Context(), n, make([]byte, 1), 0)
	}
	before := counted(t, l, "buildkitd_esgz_lazy_read_misses_total")
	require.NotZero(t, before)
	l.release(id)
	require.Equal(t, before, counted(t, l, "buildkitd_esgz_lazy_read_misses_total"))
}

func counted(t *testing.T, c prometheus.Collector, name string) float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(c))
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()[0].GetCounter().GetValue()
		}
	}
	require.Fail(t, "no such metric", name)
	return 0
}
