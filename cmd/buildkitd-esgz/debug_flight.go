package main

import (
	"fmt"
	"net/http"
	"runtime/trace"
	"sync"
	"time"
)

// flightRecorder keeps the last seconds of the Go runtime's execution trace,
// to be looked at after something went wrong. It is safe for concurrent use.
type flightRecorder struct {
	mu sync.Mutex
	// period is how far back the trace goes; zero for the runtime's default.
	period time.Duration
	// recorder is nil while not running.
	recorder *trace.FlightRecorder
}

func (f *flightRecorder) routes(m *http.ServeMux) {
	m.HandleFunc("POST /debug/flight/trace/start", f.start)
	m.HandleFunc("POST /debug/flight/trace/stop", f.stop)
	m.HandleFunc("POST /debug/flight/trace/set_period", f.setPeriod)
	m.HandleFunc("GET /debug/flight/trace", f.write)
}

func (f *flightRecorder) start(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.recorder != nil {
		http.Error(w, "flight recorder is already running", http.StatusConflict)
		return
	}
	recorder := trace.NewFlightRecorder(trace.FlightRecorderConfig{MinAge: f.period})
	if err := recorder.Start(); err != nil {
		http.Error(w, fmt.Sprintf("starting the flight recorder: %v", err), http.StatusInternalServerError)
		return
	}
	f.recorder = recorder
}

func (f *flightRecorder) stop(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.recorder == nil {
		http.Error(w, "flight recorder is not running", http.StatusConflict)
		return
	}
	f.recorder.Stop()
	f.recorder = nil
}

func (f *flightRecorder) setPeriod(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.recorder != nil {
		http.Error(w, "flight recorder is running, stop it to change its period", http.StatusPreconditionFailed)
		return
	}
	period, err := time.ParseDuration(r.FormValue("period"))
	if err != nil || period < 0 {
		http.Error(w, fmt.Sprintf("period %q: want a duration such as 30s", r.FormValue("period")), http.StatusBadRequest)
		return
	}
	f.period = period
}

func (f *flightRecorder) write(w http.ResponseWriter, _ *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.recorder == nil {
		http.Error(w, "flight recorder is not running", http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", `attachment; filename="trace"`)
	if _, err := f.recorder.WriteTo(w); err != nil {
		http.Error(w, fmt.Sprintf("writing the trace: %v", err), http.StatusInternalServerError)
	}
}
