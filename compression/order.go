package compression

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/buildkit/identity"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// labelOrdered begins the label by which a blob that a layer was ordered to is
// found again. The options and the order end it. It is also a reference, so that
// the blob lives as long as its layer.
const labelOrdered = "containerd.io/gc.ref.content.buildkitd-esgz.ordered-"

// A Layer is an eStargz layer in the content store, opened.
type Layer struct {
	*estargz.Reader
	desc ocispecs.Descriptor
	cs   content.Store
	ra   content.ReaderAt
}

// ErrUnorderable is what is wrong with a layer that is in the content store and
// that cannot be read as eStargz or be put in another order. Such a layer, which
// another tool wrote, can be exported as it is.
var ErrUnorderable = errors.New("cannot be put in another order")

// OpenLayer opens a layer of the content store. It must be closed.
func OpenLayer(ctx context.Context, cs content.Store, desc ocispecs.Descriptor) (*Layer, error) {
	ra, err := cs.ReaderAt(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	r, err := estargz.Open(ra, ra.Size(), estargz.OpenOptions{TOCDigest: digest.Digest(desc.Annotations[estargz.TOCDigestAnnotation])})
	if err != nil {
		ra.Close()
		return nil, fmt.Errorf("layer %s %w: %w", desc.Digest, ErrUnorderable, err)
	}
	return &Layer{Reader: r, desc: desc, cs: cs, ra: ra}, nil
}

// Close releases the blob.
func (l *Layer) Close() error { return l.ra.Close() }

// HasLandmark says whether somebody ordered the layer before.
func (l *Layer) HasLandmark() bool {
	for _, name := range []string{estargz.PrefetchLandmark, estargz.NoPrefetchLandmark} {
		if _, ok := l.Lookup(name); ok {
			return true
		}
	}
	return false
}

// Order returns the descriptor of the layer with the files of order first. The
// blob is made once and found again.
func (t Type) Order(ctx context.Context, l *Layer, order []string, level *int) (ocispecs.Descriptor, error) {
	key := labelOrdered + digest.FromString(strings.Join(append([]string{t.opts.String()}, order...), "\x00")).Encoded()[:32]
	info, err := l.cs.Info(ctx, l.desc.Digest)
	if err != nil {
		return l.desc, fmt.Errorf("layer %s: %w", l.desc.Digest, err)
	}
	if known, err := digest.Parse(info.Labels[key]); err == nil {
		if blob, err := l.cs.Info(ctx, known); err == nil && blob.Labels[labelAnnotation+estargz.TOCDigestAnnotation] != "" {
			// Updated now, it is the last one to make way for others.
			return ordered(l.desc, blob), setLabels(ctx, l.cs, blob, map[string]string{labelEStargz: "true"})
		}
	}
	blob, err := t.writeOrdered(ctx, l, order, level)
	if err != nil {
		return l.desc, fmt.Errorf("layer %s: %w", l.desc.Digest, err)
	}
	set, err := l.oldOrders(ctx)
	if err != nil {
		return l.desc, err
	}
	set[key] = blob.Digest.String()
	return ordered(l.desc, blob), setLabels(ctx, l.cs, info, set)
}

// maxOrders is how many other orders of a layer are kept. Each is as large as the
// layer, and a profile that changes with every build makes one every time.
const maxOrders = 8

// oldOrders returns the labels of the orders that make way for another one, those
// not used for longest, with empty values.
func (l *Layer) oldOrders(ctx context.Context) (map[string]string, error) {
	info, err := l.cs.Info(ctx, l.desc.Digest)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", l.desc.Digest, err)
	}
	used := map[string]time.Time{}
	for key, value := range info.Labels {
		if strings.HasPrefix(key, labelOrdered) {
			// What is not here any more is older than all.
			blob, _ := l.cs.Info(ctx, digest.Digest(value))
			used[key] = blob.UpdatedAt
		}
	}
	oldest := slices.SortedFunc(maps.Keys(used), func(a, b string) int { return used[a].Compare(used[b]) })
	drop := map[string]string{}
	for _, key := range oldest[:max(0, len(oldest)-maxOrders+1)] {
		drop[key] = ""
	}
	return drop, nil
}

// ordered describes a blob that takes the place of another.
func ordered(desc ocispecs.Descriptor, blob content.Info) ocispecs.Descriptor {
	desc.Digest, desc.Size = blob.Digest, blob.Size
	desc.Annotations = maps.Clone(desc.Annotations)
	for k, v := range blob.Labels {
		if name, ok := strings.CutPrefix(k, labelAnnotation); ok {
			desc.Annotations[name] = v
		}
	}
	return desc
}

func (t Type) writeOrdered(ctx context.Context, l *Layer, order []string, level *int) (_ content.Info, err error) {
	n, err := Level(level)
	if err != nil {
		return content.Info{}, err
	}
	ref := "order-" + l.desc.Digest.Encoded() + "-" + identity.NewID()
	w, err := l.cs.Writer(ctx, content.WithRef(ref))
	if err != nil {
		return content.Info{}, err
	}
	defer func() {
		w.Close()
		if err != nil { // also when ctx has ended
			_ = l.cs.Abort(context.WithoutCancel(ctx), ref)
		}
	}()
	to := &writer{Writer: w}
	blob, err := estargz.Reorder(ctx, to, l.Reader, order, estargz.Options{
		Level:        n,
		ChunkSize:    t.opts.ChunkSize,
		MinChunkSize: t.opts.MinChunkSize,
		Pool:         t.pool,
	})
	if err != nil && to.err == nil && ctx.Err() == nil {
		return content.Info{}, fmt.Errorf("%w: %w", ErrUnorderable, err)
	}
	if err != nil {
		return content.Info{}, err
	}
	set := labelsOf(annotationsOf(blob))
	info := content.Info{Digest: blob.Digest, Size: blob.Size, Labels: set}
	err = w.Commit(ctx, blob.Size, blob.Digest, content.WithLabels(set))
	if cerrdefs.IsAlreadyExists(err) {
		err = setLabels(ctx, l.cs, info, set)
	}
	return info, err
}

// A writer remembers that it failed, which is not the fault of what is written.
type writer struct {
	io.Writer
	err error
}

func (w *writer) Write(p []byte) (n int, err error) {
	n, w.err = w.Writer.Write(p)
	return n, w.err
}
