package estargz

import (
	"context"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// A Pool is a budget of workers and memory that many writers share, so that
// many layers at once need no more than one. It is safe for concurrent use.
type Pool struct {
	workers *semaphore.Weighted
	memory  *semaphore.Weighted
	limit   int64         // of memory, in bytes
	queue   int           // batches one writer may have under way
	after   time.Duration // that an input stalls, what is reserved for it is lent
	codecs  [maxLevel + 1]codec

	mu   sync.Mutex
	free map[int]*sync.Pool // of batches, by their room
}

// defaultMemoryPerWorker holds a batch that is being compressed and a few that
// wait, each with its output.
const defaultMemoryPerWorker = 32 << 20

// NewPool makes a pool of that many workers that hold about that many bytes of
// input and output together. Zero means one worker a core, 32 MiB each.
func NewPool(workers int, memory int64) *Pool {
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	if memory <= 0 {
		memory = int64(workers) * defaultMemoryPerWorker
	}
	p := &Pool{
		workers: semaphore.NewWeighted(int64(workers)),
		memory:  semaphore.NewWeighted(memory),
		limit:   memory,
		// One being compressed by each worker and one ready behind it: a
		// writer whose output stalls must not hold everybody's memory.
		queue: 2 * workers,
		after: patience,
		free:  map[int]*sync.Pool{},
	}
	for level := range p.codecs {
		p.codecs[level].level = level
	}
	return p
}

// reserve waits until n bytes are free and returns how many were taken: what
// is larger than the whole budget runs alone.
func (p *Pool) reserve(ctx context.Context, n int64) (int64, error) {
	n = min(n, p.limit)
	return n, p.memory.Acquire(ctx, n)
}

func (p *Pool) release(n int64) { p.memory.Release(n) }

// work runs f when a worker is free.
func (p *Pool) work(ctx context.Context, f func() error) error {
	if err := p.workers.Acquire(ctx, 1); err != nil {
		return err
	}
	defer p.workers.Release(1)
	return f()
}

// batch returns one with room for size bytes of tar, used before if possible:
// what one writer is done with the next one takes.
func (p *Pool) batch(size int) *batch {
	if b, ok := p.batches(size).Get().(*batch); ok {
		return b
	}
	return &batch{
		tar: make([]byte, 0, size),
		// What does not compress grows by less than this.
		blob:       make([]byte, 0, size+size/64),
		compressed: make(chan error, 1),
	}
}

func (p *Pool) reuse(b *batch) { p.batches(cap(b.tar)).Put(b) }

func (p *Pool) batches(size int) *sync.Pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free[size] == nil {
		p.free[size] = &sync.Pool{}
	}
	return p.free[size]
}
