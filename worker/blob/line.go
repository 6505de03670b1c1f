package blob

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Line is the process's connection to registries: for each a budget of
// connections and of bytes under way, whatever the blob, and what was measured of
// it; and three priorities for all. It is safe for concurrent use.
type Line struct {
	options Options
	queue   queue
	counts  counts
	peers   sync.Map // string, the registry's host, to *peer
	spools  budget   // of bytes on disk
}

// Options are those of a line. The zero value works.
type Options struct {
	// Connections is how many requests to a registry may run at a time. There are
	// at least two, since half of them are kept for what is wanted. Zero means 8.
	Connections int

	// BytesInFlight is how much may have been asked for and not be here yet. A
	// longer range takes several requests. Zero means 256 MiB.
	BytesInFlight int64

	// Deadline is for how long a read goes on trying without getting 16 KiB.
	// A request that has begun by then is not cut short. Zero means two
	// minutes.
	Deadline time.Duration

	// Stall is after how long without a byte a connection counts as dead. It
	// doubles with each one in a row, for servers that take long to find a
	// blob. Zero means 10 seconds.
	Stall time.Duration

	// TempDir is where blobs go whose server sends them whole or not at all,
	// in files without a name. Empty means the system's directory for
	// temporary files.
	TempDir string

	// CheckSpace is asked whether there is room for more bytes in TempDir. With its
	// error, reads fail that need such a file. Nil is for always.
	CheckSpace func(bytes int64) error
}

// NewLine makes a line. It holds nothing that has to be closed.
func NewLine(o Options) *Line {
	if o.Connections <= 0 {
		o.Connections = 8
	}
	o.Connections = max(o.Connections, 2)
	if o.BytesInFlight <= 0 {
		o.BytesInFlight = 256 << 20
	}
	if o.Deadline <= 0 {
		o.Deadline = 2 * time.Minute
	}
	if o.Stall <= 0 {
		o.Stall = 10 * time.Second
	}
	if o.CheckSpace == nil {
		o.CheckSpace = func(int64) error { return nil }
	}
	l := &Line{options: o, queue: queue{connections: o.Connections}}
	l.spools.left.Store(maxSpooled)
	l.spools.checkSpace = o.CheckSpace
	return l
}

// Open returns the blob with a digest, which lies in one or more places, best
// first. It asks nobody yet. Nothing has to be closed.
func (l *Line) Open(d digest.Digest, sources ...Source) *Blob {
	b := &Blob{digest: d, line: l}
	b.roster.blob = b
	b.spool.dir, b.spool.budget = l.options.TempDir, &l.spools
	b.Add(sources...)
	return b
}

// piece is the most that one request asks for: if all connections ask for as
// much, the budget is used up.
func (l *Line) piece() int64 {
	return max(l.options.BytesInFlight/int64(l.options.Connections), 1)
}

// peer returns what is known of a registry's host.
func (l *Line) peer(host string) *peer {
	p, ok := l.peers.Load(host)
	if !ok {
		p, _ = l.peers.LoadOrStore(host, &peer{})
	}
	return p.(*peer)
}

// counts are what Stats copies.
type counts struct {
	requests, bytes, retries, failures, corrupt atomic.Int64
}

// Stats are totals since the line was made, and what goes on just now.
type Stats struct {
	Requests int64 // sent to registries and their storage
	Bytes    int64 // that came for them
	Retries  int64 // requests that failed and were made again
	Failures int64 // reads that ended with an Error, cancelled ones aside
	Corrupt  int64 // streams whose reader found the bytes to be wrong

	Running [priorities]int // connections in use, by Priority
	Waiting [priorities]int // reads that wait for one, by Priority
}

// Stats returns the line's counters.
func (l *Line) Stats() Stats {
	s := Stats{
		Requests: l.counts.requests.Load(),
		Bytes:    l.counts.bytes.Load(),
		Retries:  l.counts.retries.Load(),
		Failures: l.counts.failures.Load(),
		Corrupt:  l.counts.corrupt.Load(),
	}
	s.Running, s.Waiting = l.queue.counts()
	return s
}
