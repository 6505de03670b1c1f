package worker

import (
	"context"
	"errors"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/util/bklog"
	"github.com/opencontainers/go-digest"
)

// discardFailed discards ingests that are of no use. The content store keeps what
// was written of a blob, whatever went wrong:
//
//   - If the digest is wrong, the next pull would resume there, fetch nothing, and
//     fail in the same way until the lease of the first one expires. One that resumed
//     upon wrong bytes begins anew.
//   - If the disk is full, it would stay full.
//   - If the digest is not known beforehand, as of a layer that is compressed,
//     nothing resumes there, and it would stay until garbage is collected.
func discardFailed(store *containerdsnapshot.Store) *containerdsnapshot.Store {
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
	d := &discardingWriter{Writer: w, useless: all.Desc.Digest == "", discard: func() {
		if err := s.Abort(context.WithoutCancel(ctx), all.Ref); err != nil && !errdefs.IsNotFound(err) {
			bklog.G(ctx).WithError(err).Warnf("what was written of %s stays until garbage is collected", all.Ref)
		}
	}}
	if err := d.resume(all.Desc.Size, all.Desc.Digest); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return d, nil
}

type discardingWriter struct {
	content.Writer
	discard func()
	resumed bool // this writer has not written all that is here
	useless bool // unless it is committed
	ended   bool // somebody else may write to the ingest
}

// resume looks at what is here already, and drops it if it is all of the blob and
// wrong.
func (w *discardingWriter) resume(size int64, expected digest.Digest) error {
	st, err := w.Status()
	if err != nil {
		return err
	}
	w.resumed = st.Offset > 0
	if w.resumed && st.Offset == size && w.isWrong(expected) {
		return w.restart()
	}
	return nil
}

func (w *discardingWriter) isWrong(expected digest.Digest) bool {
	got := w.Digest()
	return expected != "" && got != "" && got.Algorithm() == expected.Algorithm() && got != expected
}

func (w *discardingWriter) restart() error {
	w.resumed = false
	return w.Truncate(0)
}

func (w *discardingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		w.useless = true
	}
	return n, err
}

func (w *discardingWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	if w.resumed && w.isWrong(expected) {
		if err := w.restart(); err != nil {
			return err
		}
		return content.ErrReset // content.Copy begins anew
	}
	w.ended = true
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if errdefs.IsFailedPrecondition(err) { // digest or size is wrong
		w.discard()
	}
	return err
}

func (w *discardingWriter) Close() error {
	if !w.ended && w.useless {
		w.discard()
	}
	w.ended = true
	return w.Writer.Close()
}
