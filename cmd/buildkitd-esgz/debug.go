package main

import (
	"errors"
	"expvar"
	"fmt"
	"net/http"
	"net/http/pprof"
	"runtime"
	"strings"
	"time"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/bklog"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	nettrace "golang.org/x/net/trace"
)

// debugServer answers on the debug address. Who can reach that address may
// read everything: it is off unless configured.
type debugServer struct {
	http  *http.Server
	cache *cacheInspector
	done  chan struct{}
}

// startDebugServer listens early, so that a start that hangs can be looked at.
// Without an address it returns a server that does nothing.
func startDebugServer(address string) (*debugServer, error) {
	d := &debugServer{cache: &cacheInspector{}, done: make(chan struct{})}
	if address == "" {
		close(d.done)
		return d, nil
	}
	if !strings.Contains(address, "://") {
		address = "tcp://" + address
	}
	l, err := listen(address, self(), nil)
	if err != nil {
		return nil, fmt.Errorf("grpc.debugAddress (--debugaddr, BUILDKITD_DEBUGADDR): %w", err)
	}
	d.http = &http.Server{Handler: d.routes(), ReadHeaderTimeout: time.Minute}
	bklog.L.Debugf("debug handlers listening at %s", address)
	go func() {
		defer close(d.done)
		if err := d.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			bklog.L.WithError(err).Error("debug address")
		}
	}()
	return d, nil
}

// showCache makes the solver's cache visible.
func (d *debugServer) showCache(store solver.CacheKeyStorage) { d.cache.show(store) }

func (d *debugServer) close() {
	if d.http != nil {
		d.http.Close()
	}
	<-d.done
}

func (d *debugServer) routes() http.Handler {
	// Access is decided by the address that is listened on.
	nettrace.AuthRequest = func(*http.Request) (any, sensitive bool) { return true, true }

	m := http.NewServeMux()
	m.Handle("/debug/vars", expvar.Handler())
	m.HandleFunc("/debug/pprof/", pprof.Index)
	m.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	m.HandleFunc("/debug/pprof/profile", pprof.Profile)
	m.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	m.HandleFunc("/debug/pprof/trace", pprof.Trace)
	m.HandleFunc("/debug/requests", nettrace.Traces)
	m.HandleFunc("/debug/events", nettrace.Events)
	m.HandleFunc("/debug/gc", collectGarbage)
	m.Handle("/metrics", promhttp.Handler())
	d.cache.routes(m)
	(&flightRecorder{}).routes(m)
	return m
}

func collectGarbage(_ http.ResponseWriter, r *http.Request) {
	runtime.GC()
	bklog.G(r.Context()).Debug("garbage collected at the request of the debug address")
}
