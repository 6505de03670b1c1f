package lazy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/progress"
	"github.com/opencontainers/go-digest"
)

// Refused tells those who watch a build why a layer is pulled whole. BuildKit
// then asks for none of those above it.
func (l *Layers) Refused(ctx context.Context, labels map[string]string, err error) {
	tell(ctx, fmt.Sprintf("layer %s of %s is not lazy, it and those above it are pulled: %v", labels[digestLabel], labels[refLabel], err))
}

// tell writes a line to the log and to the progress of the context's vertex.
func tell(ctx context.Context, line string) {
	bklog.G(ctx).Warn(line)
	pw, _, _ := progress.NewFromContext(ctx)
	defer pw.Close()
	_ = pw.Write(identity.NewID(), client.VertexLog{Stream: stderr, Data: []byte(line + "\n")})
}

const stderr = 2

// Watch shows, in the progress of the vertex that runs in this context, which of
// the layers that it uses are mounted or waited for while it runs. What it
// returns ends that, and adds to the vertex's error why such a layer could not be
// read: a process in a container sees no more than EIO.
//
// The vertex is an operation of the sessions, see [Layers.Share].
func (l *Layers) Watch(ctx context.Context, uses func(blob digest.Digest) bool, sessions session.Group) (end func(error) error) {
	w := &watch{
		layers: l, uses: uses, unshare: l.Share(uses, sessions),
		start: time.Now(), before: l.waits(), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go w.run(ctx)
	return w.end
}

func (l *Layers) waits() map[*layer]int64 {
	waits := map[*layer]int64{}
	l.each(func(mounted *layer) { waits[mounted] = mounted.Stats().Misses })
	return waits
}

func (l *Layers) each(do func(*layer)) {
	l.mu.Lock()
	mounted := slices.Collect(maps.Values(l.mounted))
	l.mu.Unlock()
	for _, layer := range mounted {
		do(layer)
	}
}

type watch struct {
	layers     *Layers
	uses       func(blob digest.Digest) bool
	unshare    func()
	start      time.Time
	before     map[*layer]int64
	stop, done chan struct{}
}

func (w *watch) run(ctx context.Context) {
	defer close(w.done)
	pw, _, _ := progress.NewFromContext(ctx)
	defer pw.Close()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			w.show(pw, nil)
		case <-w.stop:
			now := time.Now()
			w.show(pw, &now)
			return
		}
	}
}

// aborted tells of the layers whose mounts have ended without being unmounted here.
func (l *Layers) aborted(uses func(blob digest.Digest) bool) (causes []error) {
	ended := map[string]*layer{} // by directory
	l.mu.Lock()
	for dir, m := range l.mounts {
		if mounted := l.mounted[m.id]; mounted != nil && m.server != nil && m.server.Ended() {
			ended[dir] = mounted
		}
	}
	l.mu.Unlock()
	for dir, mounted := range ended {
		if uses(mounted.Key().Blob) {
			causes = append(causes, fmt.Errorf("lazy layer %s of %s: its mount at %s was aborted; the next build mounts it again", mounted.Key().Blob, mounted.origin.Ref, dir))
		}
	}
	return causes
}

// each leaves out the layers of other builds.
func (w *watch) each(do func(*layer)) {
	w.layers.each(func(mounted *layer) {
		if w.uses(mounted.Key().Blob) {
			do(mounted)
		}
	})
}

// show writes a line for each layer that this vertex has to do with.
func (w *watch) show(pw progress.Writer, completed *time.Time) {
	w.each(func(mounted *layer) {
		stats := mounted.Stats()
		before, old := w.before[mounted]
		if old && stats.Misses == before {
			return
		}
		_ = pw.Write("lazy "+mounted.Key().Blob.String(), progress.Status{
			Action:  "lazy",
			Current: int(stats.Here), Total: int(stats.Size),
			Started: &w.start, Completed: completed,
		})
	})
}

// end waits until all is written, since the vertex takes no more afterwards.
func (w *watch) end(err error) error {
	w.unshare()
	close(w.stop)
	<-w.done
	if err == nil {
		return nil
	}
	return w.layers.Explain(err, w.start, w.uses)
}

// Explain adds to the error of who uses some blobs what reads of these have failed of
// since the start, unless the error says so, and which layers cannot be read any more.
func (l *Layers) Explain(err error, start time.Time, uses func(blob digest.Digest) bool) error {
	causes := l.aborted(uses)
	l.each(func(mounted *layer) {
		failure := mounted.failure.Load()
		if !uses(mounted.Key().Blob) || failure == nil || failure.at.Before(start) || errors.Is(err, failure.err) {
			return
		}
		stats := mounted.Stats()
		causes = append(causes, fmt.Errorf("lazy layer %s of %s, of which %s of %s is here: %w", mounted.Key().Blob, mounted.origin.Ref,
			units.HumanSize(float64(stats.Here)), units.HumanSize(float64(stats.Size)), failure.err))
	})
	if len(causes) == 0 {
		return err
	}
	return fmt.Errorf("%w: %w", err, errors.Join(causes...))
}
