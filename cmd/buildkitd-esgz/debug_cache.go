package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	cacheimport "github.com/moby/buildkit/cache/remotecache/v1"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/cachedigest"
	"github.com/moby/buildkit/util/cachestore"
	"github.com/opencontainers/go-digest"
)

// cacheInspector shows the keys of the build cache on the debug address, with
// the plain text behind them as far as --save-cache-debug saved it.
type cacheInspector struct {
	store atomic.Pointer[solver.CacheKeyStorage]
}

// keyRecord is a cache key, its links and its plain texts.
type keyRecord struct {
	*cachestore.Record
	Debug []*cachedigest.Record `json:"debug,omitempty"`
}

func (c *cacheInspector) show(store solver.CacheKeyStorage) { c.store.Store(&store) }

func (c *cacheInspector) routes(m *http.ServeMux) {
	m.HandleFunc("/debug/cache/all", c.serveAll)
	m.HandleFunc("/debug/cache/lookup", c.serveLookup)
	m.HandleFunc("GET /debug/cache/store", c.serveStore)
	m.HandleFunc("POST /debug/cache/load", c.serveLoad)
}

// serveAll answers with all plain texts.
func (c *cacheInspector) serveAll(w http.ResponseWriter, r *http.Request) {
	records, err := allTexts(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, r, records, func(w io.Writer) {
		for _, record := range records {
			printText(w, record)
			fmt.Fprintln(w)
		}
	})
}

// serveLookup answers with the plain text of one digest.
func (c *cacheInspector) serveLookup(w http.ResponseWriter, r *http.Request) {
	id, err := digest.Parse(r.URL.Query().Get("digest"))
	if err != nil {
		http.Error(w, fmt.Sprintf("query parameter digest: %v", err), http.StatusBadRequest)
		return
	}
	record, err := lookupText(r.Context(), id)
	if err != nil {
		status := http.StatusInternalServerError
		if errors.Is(err, cachedigest.ErrNotFound) {
			status = http.StatusNotFound
		}
		http.Error(w, err.Error(), status)
		return
	}
	answer(w, r, record, func(w io.Writer) { printText(w, record) })
}

// serveStore answers with the keys of the daemon's own cache.
func (c *cacheInspector) serveStore(w http.ResponseWriter, r *http.Request) {
	store := c.store.Load()
	if store == nil {
		http.Error(w, "the cache is not open yet", http.StatusServiceUnavailable)
		return
	}
	serveKeys(w, r, *store)
}

// serveLoad answers with the keys of the remote cache whose configuration is posted.
func (c *cacheInspector) serveLoad(w http.ResponseWriter, r *http.Request) {
	content, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	chains := cacheimport.NewCacheChains()
	if err := cacheimport.Parse(content, cacheimport.DescriptorProvider{}, chains); err != nil {
		http.Error(w, fmt.Sprintf("cache configuration: %v", err), http.StatusBadRequest)
		return
	}
	store, _, err := cacheimport.NewCacheKeyStorage(chains, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	serveKeys(w, r, store)
}

func serveKeys(w http.ResponseWriter, r *http.Request, store solver.CacheKeyStorage) {
	records, err := keys(r.Context(), store)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, r, records, func(w io.Writer) { printKeys(w, records) })
}

// answer sends JSON to who asks for it, and text to everyone else.
func answer(w http.ResponseWriter, r *http.Request, value any, text func(io.Writer)) {
	if r.Header.Get("Accept") != "application/json" {
		w.Header().Set("Content-Type", "text/plain")
		text(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(value); err != nil {
		bklog.G(r.Context()).WithError(err).Debug("answering on the debug address")
	}
}

func keys(ctx context.Context, store solver.CacheKeyStorage) ([]*keyRecord, error) {
	records, err := cachestore.Records(ctx, store)
	if err != nil {
		return nil, fmt.Errorf("cache keys: %w", err)
	}
	out := make([]*keyRecord, len(records))
	for i, record := range records {
		out[i] = &keyRecord{Record: record, Debug: textsOf(ctx, record)}
	}
	return out, nil
}
