package blob

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// maxSources is how many sources a blob keeps: a base layer may be named by one
// repository after another for as long as the daemon runs.
const maxSources = 8

var errNobody = errors.New("no registry to ask")

// A roster says which host of a blob is asked next: by the order of sources and
// their hosts, those that failed last.
type roster struct {
	blob *Blob

	mu       sync.Mutex
	sources  []Source
	asked    int     // of the sources, for their hosts
	hosts    []*host // of those
	failures int
	version  int           // of all that is above
	renewed  chan struct{} // closed by renew
}

func (r *roster) renew(sources []Source) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := slices.DeleteFunc(slices.Clone(r.sources), func(o Source) bool {
		return slices.ContainsFunc(sources, func(s Source) bool {
			return s.Registry == o.Registry && s.Repository == o.Repository
		})
	})
	all := slices.Concat(sources, old)
	r.sources = all[:min(len(all), max(len(sources), maxSources))]
	r.reset()
	if r.renewed != nil {
		close(r.renewed)
		r.renewed = nil
	}
}

// refresh forgets the hosts, so that all sources are asked for them again.
func (r *roster) refresh() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reset()
}

func (r *roster) reset() {
	r.hosts, r.asked = nil, 0
	r.version++
}

// news returns what is closed when there are other sources.
func (r *roster) news() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.renewed == nil {
		r.renewed = make(chan struct{})
	}
	return r.renewed
}

// pick returns the best host that was not tried yet, or nil. A source is asked
// for its hosts when those of the ones before it have failed.
func (r *roster) pick(tried func(key) bool) *host {
	for {
		r.mu.Lock()
		best := r.best(tried)
		if best != nil && best.failed == 0 || r.asked == len(r.sources) {
			r.mu.Unlock()
			return best
		}
		source, version := r.sources[r.asked], r.version
		r.mu.Unlock()

		hosts := r.blob.hostsOf(source) // may take its time
		r.mu.Lock()
		if r.version == version {
			r.hosts = append(r.hosts, hosts...)
			r.asked++
			r.version++
		}
		r.mu.Unlock()
	}
}

func (r *roster) best(tried func(key) bool) *host {
	var best *host
	for _, h := range r.hosts {
		if !tried(h.key) && (best == nil || h.failed < best.failed) {
			best = h
		}
	}
	return best
}

// failed puts a host behind the others.
func (r *roster) failed(h *host) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures++
	h.failed = r.failures
}

// hostsOf asks a source for its hosts. If it has none, one that says so takes
// their place.
func (b *Blob) hostsOf(s Source) []*host {
	registries, err := s.Hosts()
	if err != nil {
		return []*host{{key: key{s.Repository, s.Registry}, err: fmt.Errorf("hosts of %s: %w", s.Repository, err)}}
	}
	var hosts []*host
	for _, h := range registries {
		if h.Capabilities.Has(docker.HostCapabilityPull) {
			hosts = append(hosts, newHost(b, s, h))
		}
	}
	if len(hosts) == 0 {
		return []*host{{key: key{s.Repository, s.Registry}, err: fmt.Errorf("%s: %w", s.Repository, errNobody)}}
	}
	return hosts
}
