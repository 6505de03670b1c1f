package main

import (
	"context"
	"errors"
	"testing"

	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	bkexporter "github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/session"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/exporter"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker"
)

var errStock = errors.New("reached BuildKit's exporter")

// stockExporter says that it was reached.
type stockExporter struct{ bkexporter.Exporter }

func (stockExporter) Resolve(context.Context, int, map[string]string) (bkexporter.ExporterInstance, error) {
	return nil, errStock
}

// No way out of the daemon leads past our exporters: an attribute that nobody
// knows but us is answered by us.
func TestEveryExporterIsOurs(t *testing.T) {
	attrs := map[string]string{"compression": "estargz", "estargz-nothing": "1"}
	ours := newParts(exporter.Defaults{})
	for _, name := range []string{
		client.ExporterImage, client.ExporterOCI, client.ExporterDocker, client.ExporterLocal, client.ExporterTar,
	} {
		_, err := ours.exporter(name, stockExporter{}, nil).Resolve(t.Context(), 0, attrs)
		require.ErrorContains(t, err, "estargz-nothing", name)
		_, err = ours.exporter(name, stockExporter{}, nil).Resolve(t.Context(), 0, nil)
		require.ErrorIs(t, err, errStock, name)
	}

	stock := newCacheBackends(config.Config{}, worker.Host{}, nil).exporters()
	for name := range stock {
		stock[name] = func(context.Context, session.Group, map[string]string) (remotecache.Exporter, error) {
			return nil, errStock
		}
	}
	wrapped := ours.cacheExporters(stock)
	require.Len(t, wrapped, len(stock))
	for name, resolve := range wrapped {
		_, err := resolve(t.Context(), nil, attrs)
		require.ErrorContains(t, err, "estargz-nothing", name)
		_, err = resolve(t.Context(), nil, nil)
		require.ErrorIs(t, err, errStock, name)
	}
}

func TestCacheBackends(t *testing.T) {
	b := newCacheBackends(config.Config{}, worker.Host{}, nil)
	for _, name := range []string{"registry", "local", "inline", "gha", "s3", "azblob"} {
		require.Contains(t, b.exporters(), name)
		if name != "inline" {
			require.Contains(t, b.importers(), name)
		}
	}
}
