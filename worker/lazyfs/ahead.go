package lazyfs

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// ahead puts small files into the page cache before they are asked for, when
// files are read in the order of their nodes, as tar, cp and grep -r do. The
// kernel reads ahead in a file, but not from one file to the next, and for small
// ones to ask takes longer than to read. It begins with few files and goes on
// with more as long as the guess proves right.
//
// Only files that the kernel knows can be put there. It knows those of a
// directory that it has listed.
type ahead struct {
	layer  Layer
	start  func(func())       // in a goroutine that is waited for
	notify func([]byte) error // the kernel

	mu     sync.Mutex
	last   store.Node // that was read
	next   store.Node // behind the last one that was put into the page cache
	streak int        // reads in order
	trust  int        // directories that may be guessed until there is a read
	busy   bool
	idle   *sync.Cond // it is not busy
	ended  bool       // and never again
	given  []uint64   // a bit for each node whose contents the kernel got
	notice notice     // of the run
}

const (
	// aheadSize is up to how many bytes a file is read ahead. The kernel asks
	// for a larger one in several parts, and reads ahead by itself.
	aheadSize = 128 << 10
	// aheadBytes is how much is read ahead at once.
	aheadBytes = 4 << 20
	// aheadNodes is how many nodes are looked at for that.
	aheadNodes = 256
	// near is how many nodes apart reads in order are: those between are no
	// files, or they are in the page cache.
	near = 16
	// walking is how many reads in order show that whole directories are read,
	// and aheadDirs for how many directories that is believed.
	walking   = 4
	aheadDirs = 64
)

func newAhead(layer Layer, start func(func()), notify func([]byte) error) *ahead {
	a := &ahead{layer: layer, start: start, notify: notify, given: make([]uint64, layer.Nodes()/64+1)}
	a.idle = sync.NewCond(&a.mu)
	return a
}

// end ends reading ahead, and waits for its end.
func (a *ahead) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	for a.busy {
		a.idle.Wait()
	}
}

// read is called when the beginning of a file was read.
func (a *ahead) read(n store.Node) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mark(n)
	done := max(n+1, a.next)
	ordered := a.last < n && n <= max(a.last, a.next)+near
	a.last = n
	if !ordered {
		a.streak, a.trust, a.next = 0, 0, 0
		return
	}
	a.streak++
	a.trust = aheadDirs
	end := min(done+store.Node(min(1<<min(a.streak, 16), aheadNodes)), store.Node(a.layer.Nodes()))
	a.run(func(yield func(store.Node) bool) {
		for n := done; n < end && yield(n); n++ {
		}
	})
}

// listed is called when a directory was read to its end.
func (a *ahead) listed(dir store.Node) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.streak < walking || a.trust == 0 {
		return
	}
	a.trust--
	a.run(func(yield func(store.Node) bool) {
		for _, e := range a.layer.Entries(dir, 0) {
			if !yield(e.Node) {
				return
			}
		}
	})
}

// forgot is called when the kernel forgot a file, with its contents.
func (a *ahead) forgot(n store.Node) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if int(n) < a.layer.Nodes() {
		a.given[n/64] &^= 1 << (n % 64)
	}
}

// mark says whether a node's contents were given before. The caller holds the
// lock.
func (a *ahead) mark(n store.Node) (before bool) {
	before = a.given[n/64]&(1<<(n%64)) != 0
	a.given[n/64] |= 1 << (n % 64)
	return before
}

// had marks a node, unless it was.
func (a *ahead) had(n store.Node) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mark(n)
}

// run reads ahead, unless that is going on. The caller holds the lock.
func (a *ahead) run(nodes iter.Seq[store.Node]) {
	if a.busy || a.ended {
		return
	}
	a.busy = true
	a.start(func() {
		size := 0
		for n := range nodes {
			got, ok := a.put(n)
			size += got
			if !ok || size >= aheadBytes || a.isEnded() {
				break
			}
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.busy = false
		a.idle.Broadcast()
	})
}

func (a *ahead) isEnded() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ended
}

// put puts a file into the page cache, if it is one for that. It returns false
// when the kernel does not know the file, or its contents are not present. They
// are being fetched then, and the kernel will ask.
func (a *ahead) put(n store.Node) (size int, ok bool) {
	at := a.layer.Attr(n)
	if at.Mode&unix.S_IFMT != unix.S_IFREG || at.Size == 0 || at.Size > aheadSize {
		return 0, true
	}
	if a.had(n) {
		return 0, true
	}
	size = int(at.Size)
	if a.notice == nil {
		a.notice = make(notice, noticeSize+aheadSize)
	}
	_, err := a.layer.ReadAt(over(), n, a.notice.contents(size), 0)
	if (err == nil || errors.Is(err, io.EOF)) && a.notify(a.notice.of(idOf(n), size)) == nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.next = max(a.next, n+1)
		return size, true
	}
	a.forgot(n)
	return 0, false
}

// over is a context that is over: nobody waits.
func over() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
