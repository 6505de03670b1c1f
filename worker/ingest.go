package worker

import (
	"context"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/util/bklog"
	"github.com/opencontainers/go-digest"
)

// discardWrong lets wrong bytes from a registry fail one pull only. The content
// store keeps what was written of a blob whose digest is wrong, and the next pull
// would resume there, fetch nothing, and fail in the same way until the lease of
// the first one expires.
func discardWrong(store *containerdsnapshot.Store) *containerdsnapshot.Store {
	return containerdsnapshot.NewContentStore(&discardingStore{store.Store}, store.Namespace())
}

type discardingStore struct{ content.Store }

func (s *discardingStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var all content.WriterOpts
	for _, opt := range opts {
		if err := opt(&all); err != nil {
			return nil, err
		}
	}
	w, err := s.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return &discardingWriter{Writer: w, store: s.Store, ref: all.Ref}, nil
}

type discardingWriter struct {
	content.Writer
	store content.Store
	ref   string
}

func (w *discardingWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if !errdefs.IsFailedPrecondition(err) {
		return err
	}
	// Digest or size is wrong.
	if aborted := w.store.Abort(context.WithoutCancel(ctx), w.ref); aborted != nil && !errdefs.IsNotFound(aborted) {
		bklog.G(ctx).WithError(aborted).Warnf("the next pull of %s may fail for the same reason", w.ref)
	}
	return err
}
