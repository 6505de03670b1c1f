package blob

import (
	"sync"
	"time"
)

const (
	// What a line is taken for that was not measured yet: 20 ms, 400 Mbit/s.
	usualRoundTrip = 20 * time.Millisecond
	usualBandwidth = 50e6 // bytes a second

	// A window below minWindow is not worth a request of its own on any line,
	// one above maxWindow keeps whoever needs its end waiting for long.
	minWindow = 256 << 10
	maxWindow = 8 << 20

	// fresh is the weight of a new measurement beside all older ones.
	fresh = 0.25

	// minSample is how many bytes tell something about bandwidth: fewer may
	// have come in one burst with the header.
	minSample = 128 << 10
)

// A peer is what is known of a registry's host, its storage included. The zero
// value knows nothing. It is safe for concurrent use.
type peer struct {
	mu        sync.Mutex
	roundTrip time.Duration // from a request to its answer's first byte
	bytes     float64       // that came lately
	seconds   float64       // that they took, each request by itself
	noSuffix  bool          // it has refused a suffix range
}

// waited takes in what passed between a request and the first byte.
func (p *peer) waited(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.roundTrip == 0 {
		p.roundTrip = d
		return
	}
	p.roundTrip += time.Duration(fresh * float64(d-p.roundTrip))
}

// carried takes in how long n bytes of a body took. Both are summed up, so that
// larger bodies weigh more.
func (p *peer) carried(n int64, d time.Duration) {
	if n < minSample || d <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes = (1-fresh)*p.bytes + float64(n)
	p.seconds = (1-fresh)*p.seconds + d.Seconds()
}

// line returns the round trip, and the bytes a second that one request gets.
func (p *peer) line() (time.Duration, float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	roundTrip, bandwidth := usualRoundTrip, usualBandwidth
	if p.roundTrip > 0 {
		roundTrip = p.roundTrip
	}
	if p.seconds > 0 {
		bandwidth = p.bytes / p.seconds
	}
	return roundTrip, bandwidth
}

// window is what the line carries in one round trip. To fetch that much too
// much costs what another request would cost, if it is needed after all, and
// which it will be nobody knows. What nobody waits for yet asks for twice as
// much, so that who comes to wait for some of it does not wait for long. What is
// in the background asks for four times as much, and so uses four fifths of the
// line.
func (p *peer) window(priority Priority) int64 {
	roundTrip, bandwidth := p.line()
	n := roundTrip.Seconds() * bandwidth
	n *= [priorities]float64{Wanted: 1, Prefetch: 2, Background: 4}[priority]
	return int64(min(max(n, minWindow), maxWindow))
}

func (p *peer) refusesSuffix() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.noSuffix
}

func (p *peer) refusedSuffix() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noSuffix = true
}
