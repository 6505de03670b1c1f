package lazy

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/moby/buildkit/util/bklog"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/blob"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// A layer is one that is mounted. It is what a mount shows, and remembers what
// could not be read: who reads a mount sees no more than EIO.
type layer struct {
	*store.Layer
	blob   *blob.Blob
	origin Origin
	gate   *gate
	// Layers.mu guards these.
	mounts  int
	started bool

	failure atomic.Pointer[failure]

	renewed chan struct{}
	cancel  context.CancelFunc
	done    chan struct{}
}

func newLayer(stored *store.Layer, b *blob.Blob, o Origin, g *gate, s *diskSpace) *layer {
	stored.Connect(store.Blobs{
		Wanted:     limitedView{b.With(blob.Wanted), s},
		Prefetch:   b.With(blob.Prefetch),
		Background: b.With(blob.Background),
	})
	return &layer{
		Layer: stored, blob: b, origin: o, gate: g,
		renewed: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

// A failure is a read that found no contents.
type failure struct {
	at  time.Time
	err error
}

// ReadAt remembers when it was called, and why it failed, as do Wait and
// ReadPresent.
func (l *layer) ReadAt(ctx context.Context, n store.Node, p []byte, off int64) (int, error) {
	l.gate.reads()
	read, err := l.Layer.ReadAt(ctx, n, p, off)
	return read, l.remember(ctx, err)
}

// Wait is described at ReadAt.
func (l *layer) Wait(ctx context.Context, n store.Node, off, size int64) error {
	l.gate.reads()
	return l.remember(ctx, l.Layer.Wait(ctx, n, off, size))
}

// ReadPresent is described at ReadAt.
func (l *layer) ReadPresent(n store.Node, p []byte, off int64) (int, error) {
	read, err := l.Layer.ReadPresent(n, p, off)
	return read, l.remember(context.Background(), err)
}

func (l *layer) remember(ctx context.Context, err error) error {
	if err != nil && err != io.EOF && ctx.Err() == nil {
		l.failure.Store(&failure{at: time.Now(), err: err})
	}
	return err
}

// announced is called when a build is about to use the layer. The first one
// begins to fetch what nobody has asked for yet, for as long as the layer is
// mounted; the others wake up who gave up. What came corrupt for another build may
// come right for this one.
func (l *layer) announced(c Config) {
	l.Retry()
	if l.started {
		select {
		case l.renewed <- struct{}{}:
		default:
		}
		return
	}
	l.started = true
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	l.gate.reads() // presently
	go func() {
		defer close(l.done)
		l.fill(ctx, c)
	}()
}

func (l *layer) fill(ctx context.Context, c Config) {
	for pause := time.Second; ; pause = min(2*pause, time.Hour) {
		err := l.fetch(ctx, c)
		if err == nil || ctx.Err() != nil {
			return
		}
		again := time.After(pause)
		if lacksSpace(err) {
			again = time.After(diskInterval)
		} else if refused(err) {
			again = nil
		}
		bklog.L.WithError(err).Debugf("layer %s is fetched on when it is used again, or in %s unless it was refused", l.Key().Blob, pause)
		select {
		case <-ctx.Done():
			return
		case <-l.renewed:
		case <-again:
		}
	}
}

// refused says whether an error is that of a registry, or of credentials, that
// will not change by itself.
func refused(err error) bool {
	var e *blob.Error
	return errors.As(err, &e) && !e.Temporary()
}

func (l *layer) fetch(ctx context.Context, c Config) error {
	if !c.NoPrefetch {
		l.gate.prefetching.Add(1)
		err := l.Prefetch(ctx)
		l.gate.prefetching.Add(-1)
		if err != nil {
			return err
		}
	}
	if c.NoBackgroundFetch {
		return nil
	}
	return l.Fill(ctx)
}

func (l *layer) stop() {
	if l.started {
		l.cancel()
		<-l.done
	}
}
