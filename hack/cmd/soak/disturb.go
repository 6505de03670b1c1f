package main

import (
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
)

// A disturbance happens to one daemon while steps run. Undo, if it is not nil, is
// called when they have ended. A harmless one is no excuse for a step that fails.
type disturbance struct {
	name     string
	do       func(*rand.Rand)
	undo     func()
	harmless bool
}

func (d *daemon) disturbances() []disturbance {
	all := []disturbance{
		{name: "nothing"},
		{name: "nothing"},
		{name: "kill", do: func(*rand.Rand) { d.Kill(); d.mustStart() }},
		{name: "kill twice", do: func(r *rand.Rand) {
			d.Kill()
			d.mustStart()
			time.Sleep(time.Duration(r.Int64N(int64(300 * time.Millisecond))))
			d.Kill()
			d.mustStart()
		}},
		{name: "stop", do: func(*rand.Rand) {
			// It waits for builds; a second signal cuts them off.
			d.Signal(syscall.SIGTERM)
			time.Sleep(200 * time.Millisecond)
			if err := d.stop(); err != nil {
				log.Printf("%s: %v", d.name, err)
			}
			d.mustStart()
		}},
		{name: "freeze", do: func(r *rand.Rand) {
			d.Signal(syscall.SIGSTOP)
			time.Sleep(time.Duration(r.Int64N(int64(3 * time.Second))))
			d.Signal(syscall.SIGCONT)
		}},
		{name: "full disk", do: func(r *rand.Rand) {
			if err := d.fill(uint64(r.IntN(4 << 20))); err != nil {
				log.Printf("%s: fill: %v", d.name, err)
			}
		}, undo: d.empty},
		{name: "full disk and kill", do: func(r *rand.Rand) {
			if err := d.fill(uint64(r.IntN(1 << 20))); err != nil {
				log.Printf("%s: fill: %v", d.name, err)
			}
			time.Sleep(time.Duration(r.Int64N(int64(time.Second))))
			d.Kill()
			d.empty()
			d.mustStart()
		}, undo: d.empty},
		{name: "killed client", do: func(r *rand.Rand) {
			if err := d.killClient(r); err != nil {
				log.Printf("%s: client to kill: %v", d.name, err)
			}
		}, harmless: true},
		{name: "second daemon", do: func(*rand.Rand) { d.mustRefuseSecond() }, harmless: true},
	}
	if d.gate.login != nil && !d.gate.login.Basic {
		all = append(all, disturbance{name: "expired tokens", do: func(r *rand.Rand) {
			for range 1 + r.IntN(5) {
				d.gate.login.Forget()
				time.Sleep(time.Duration(r.Int64N(int64(time.Second))))
			}
		}})
	}
	for _, f := range faults {
		all = append(all, disturbance{
			name: "registry: " + f.name,
			do: func(r *rand.Rand) {
				d.gate.oneIn.Store(int64(1 + r.IntN(3)))
				d.gate.fault.Store(&f)
				time.Sleep(time.Duration(r.Int64N(int64(5 * time.Second))))
				d.gate.fault.Store(nil)
			},
		})
	}
	return all
}

func (d *daemon) empty() { _ = os.Remove(filepath.Join(d.root, "filler")) }

// mustStart gives up when a daemon does not start: there is nothing to go on
// with.
func (d *daemon) mustStart() {
	if err := d.start(); err != nil {
		d.w.showLogs()
		log.Fatalf("seed %d: %v", d.w.opt.seed, err)
	}
}

// A gate stands before the registry. It may want a login, and answers some requests
// in its own way.
type gate struct {
	address string
	login   *shaped.Login // nil lets everybody in
	server  http.Server
	forward http.Handler
	fault   atomic.Pointer[fault]
	oneIn   atomic.Int64 // requests are answered so
	n       atomic.Int64 // requests while there is a fault
}

// The user that all clients are.
const user, password = "builder", "secret"

func newGate(registry string, login *shaped.Login) (*gate, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	forward.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	g := &gate{address: l.Addr().String(), login: login, forward: forward}
	g.server.Handler = g
	go func() { _ = g.server.Serve(l) }()
	return g, nil
}

// randomLogin returns nil for a registry that lets everybody in.
func randomLogin(r *rand.Rand) (login *shaped.Login, name string) {
	login = &shaped.Login{Users: map[string]string{user: password}, Lasts: time.Hour}
	switch r.IntN(4) {
	case 0:
		return nil, "no login"
	case 1:
		login.Basic = true
		return login, "a password"
	}
	return login, "tokens"
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if g.login != nil && !g.login.Admits(w, r) {
		return
	}
	if f := g.fault.Load(); f != nil && (f.writes || r.Method == http.MethodGet) && g.n.Add(1)%g.oneIn.Load() == 0 {
		f.answer(g.forward, w, r)
		return
	}
	g.forward.ServeHTTP(w, r)
}

// A fault answers a request.
type fault struct {
	name   string
	writes bool // it is for those that push, too
	answer func(forward http.Handler, w http.ResponseWriter, r *http.Request)
}

var faults = []fault{
	status(http.StatusInternalServerError), status(http.StatusForbidden), status(http.StatusUnauthorized),
	status(http.StatusNotFound), status(http.StatusTooManyRequests),
	{"reset", true, func(forward http.Handler, w http.ResponseWriter, r *http.Request) {
		forward.ServeHTTP(&shaped.CutWriter{ResponseWriter: w, Left: 1000, Cut: func() { panic(http.ErrAbortHandler) }}, r)
	}},
	{"stall", true, func(forward http.Handler, w http.ResponseWriter, r *http.Request) {
		forward.ServeHTTP(&shaped.CutWriter{ResponseWriter: w, Left: 1000, Cut: func() {
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
			case <-time.After(10 * time.Second):
			}
			panic(http.ErrAbortHandler)
		}}, r)
	}},
	{"wrong bytes", false, func(forward http.Handler, w http.ResponseWriter, r *http.Request) {
		forward.ServeHTTP(&shaped.WrongWriter{ResponseWriter: w}, r)
	}},
	{"wrong range", false, func(forward http.Handler, w http.ResponseWriter, r *http.Request) {
		r.Header.Set("Range", "bytes=0-99")
		forward.ServeHTTP(w, r)
	}},
	{"no ranges", false, func(forward http.Handler, w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Range")
		forward.ServeHTTP(w, r)
	}},
	{"slow", true, func(forward http.Handler, w http.ResponseWriter, r *http.Request) {
		time.Sleep(700 * time.Millisecond)
		forward.ServeHTTP(w, r)
	}},
}

func status(code int) fault {
	return fault{fmt.Sprint(code), true, func(_ http.Handler, w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "a fault", code)
	}}
}
