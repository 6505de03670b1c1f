package blob

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

const (
	// maxReaderless is how many sources without a reader a blob keeps: a base layer
	// may be named by one repository after another for as long as the daemon
	// runs.
	maxReaderless = 8

	// grudge is for how long a host that has failed comes after the others.
	grudge = time.Minute
)

var (
	errNobody = errors.New("no registry to ask")
	errEnded  = errors.New("the builds that may read it have ended")
)

// A roster says which host of a blob is asked next: by the order of sources and
// their hosts, those that have failed lately last. Sources whose reader is gone
// are replaced by its successors.
type roster struct {
	blob *Blob

	mu     sync.Mutex
	places []*place
	ended  bool          // a reader has gone
	added  chan struct{} // closed by add
}

// A place is a source with its hosts.
type place struct {
	Source

	mu    sync.Mutex
	asked bool
	hosts []*host
}

// add puts sources in front of those that are there already. Those that are
// known keep their hosts, those whose reader is gone are forgotten: nobody may
// ever read from a blob that is complete.
func (r *roster) add(sources []Source) {
	r.living()
	r.mu.Lock()
	defer r.mu.Unlock()
	places, news := make([]*place, 0, len(sources)+len(r.places)), false
	for _, s := range sources {
		i := slices.IndexFunc(r.places, func(p *place) bool { return p.same(s) })
		if i < 0 {
			places, news = append(places, &place{Source: s}), true
			continue
		}
		places = append(places, r.places[i])
		r.places = slices.Delete(r.places, i, i+1)
	}
	readerless := 0
	r.places = slices.DeleteFunc(append(places, r.places...), func(p *place) bool {
		if p.Alive == nil {
			readerless++
		}
		return p.Alive == nil && readerless > maxReaderless
	})
	if news && r.added != nil {
		close(r.added)
		r.added = nil
	}
}

func (s *Source) same(o Source) bool {
	return s.Registry == o.Registry && s.Repository == o.Repository && s.Digest == o.Digest && s.Reader == o.Reader
}

// refresh forgets the hosts, so that all sources are asked for them again.
func (r *roster) refresh() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, p := range r.places {
		r.places[i] = &place{Source: p.Source}
	}
}

// news returns what is closed when there are other sources.
func (r *roster) news() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.added == nil {
		r.added = make(chan struct{})
	}
	return r.added
}

// pick returns the best host that was not tried yet, or nil. A source is asked
// for its hosts when those of the ones before it have failed.
func (r *roster) pick(tried func(key) bool) *host {
	var best *host
	for _, p := range r.living() {
		for _, h := range p.ask(r.blob) {
			switch {
			case tried(h.key):
			case !h.failedLately():
				return h
			case best == nil || best.worse(h):
				best = h
			}
		}
	}
	return best
}

// living are the places whose readers are there. The successors of the others
// come last.
func (r *roster) living() []*place {
	r.mu.Lock()
	places := slices.Clone(r.places)
	r.mu.Unlock()
	gone := map[*place]bool{}
	for _, p := range places {
		if p.Alive != nil && !p.Alive() {
			gone[p] = true
		}
	}
	if len(gone) == 0 {
		return places
	}
	var successors []Source
	for p := range gone {
		if p.Successors != nil {
			successors = append(successors, p.Successors(r.blob.digest)...)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.places = slices.DeleteFunc(r.places, func(p *place) bool { return gone[p] })
	r.ended = true
	for _, s := range successors {
		if !slices.ContainsFunc(r.places, func(p *place) bool { return p.same(s) }) {
			r.places = append(r.places, &place{Source: s})
		}
	}
	return slices.Clone(r.places)
}

// nobody says why there is no host to ask.
func (r *roster) nobody() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return errEnded
	}
	return errNobody
}

// ask returns the hosts of a place, which may take its time the first time.
func (p *place) ask(b *Blob) []*host {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.asked {
		p.hosts, p.asked = b.hostsOf(p.Source), true
	}
	return p.hosts
}

// fails puts a host behind the others.
func (h *host) fails() { h.failed.Store(time.Now().UnixNano()) }

// worse tells whether to ask the host after another one that has failed: if it
// has sent wrong bytes and the other has not, or else if it has failed later.
func (h *host) worse(other *host) bool {
	if wrong := h.distrust.Load(); wrong != other.distrust.Load() {
		return wrong
	}
	return h.failed.Load() > other.failed.Load()
}

func (h *host) failedLately() bool {
	at := h.failed.Load()
	return at != 0 && time.Since(time.Unix(0, at)) < grudge
}

// hostsOf asks a source for its hosts. If it has none, one that says so takes
// their place.
func (b *Blob) hostsOf(s Source) []*host {
	registries, err := s.Hosts()
	if err != nil {
		return []*host{{key: s.key(s.Registry), err: fmt.Errorf("hosts of %s: %w", s.Repository, err)}}
	}
	var hosts []*host
	for _, h := range registries {
		if h.Capabilities.Has(docker.HostCapabilityPull) {
			hosts = append(hosts, newHost(b, s, h))
		}
	}
	if len(hosts) == 0 {
		return []*host{{key: s.key(s.Registry), err: fmt.Errorf("%s: %w", s.Repository, errNobody)}}
	}
	return hosts
}
