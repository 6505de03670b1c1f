package compression

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	bkcompression "github.com/moby/buildkit/util/compression"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// Compress returns a compressor for one layer and what completes the committed
// blob. BuildKit may call the compressor again after a try that failed; the
// finalizer speaks of the last one. A try lives no longer than ctx. There is none
// after one that found the disk full: some of those who try do not tell why they
// failed.
func (t Type) Compress(ctx context.Context, comp bkcompression.Config) (bkcompression.Compressor, bkcompression.Finalizer) {
	var mu sync.Mutex
	var last *layerWriter

	compress := func(dest io.Writer, mediaType string) (io.WriteCloser, error) {
		from, err := bkcompression.FromMediaType(mediaType)
		if err != nil {
			return nil, err
		}
		if from != bkcompression.Gzip {
			return nil, fmt.Errorf("eStargz layers are gzip, not %q", mediaType)
		}
		level, err := Level(comp.Level)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		if last != nil && last.foundNoRoom() {
			return nil, last.err
		}
		w := newLayerWriter(ctx, dest, estargz.Options{
			Level:        level,
			ChunkSize:    t.opts.ChunkSize,
			MinChunkSize: t.opts.MinChunkSize,
			Pool:         t.pool,
		})
		last = w
		return w, nil
	}

	finalize := func(ctx context.Context, cs content.Store) (map[string]string, error) {
		mu.Lock()
		w := last
		mu.Unlock()
		if w == nil {
			return nil, errors.New("no eStargz layer was written")
		}
		info, err := w.result()
		if err != nil {
			return nil, err
		}
		return t.finish(ctx, cs, info)
	}
	return compress, finalize
}

// finish labels a committed blob and returns the annotations of its
// descriptor. Whoever committed it may have labelled it with the digest of the
// tar that went in, which is not what it decompresses to: there is a TOC now.
func (t Type) finish(ctx context.Context, cs content.Store, info *estargz.Info) (map[string]string, error) {
	blob, err := cs.Info(ctx, info.Digest)
	if err != nil {
		return nil, fmt.Errorf("eStargz layer %s: %w", info.Digest, err)
	}
	annotations := annotationsOf(info)
	set := labelsOf(annotations)
	set[labelWritten+t.opts.String()] = "true"
	return annotations, setLabels(ctx, cs, blob, set)
}

// Level translates compression-level: absent or -1 is the default, 0 stores,
// 1 is fast and 9 is small.
func Level(level *int) (int, error) {
	switch {
	case level == nil || *level == -1:
		return estargz.DefaultLevel, nil
	case *level == 0:
		return estargz.NoCompression, nil
	case *level >= 1 && *level <= 9:
		return *level, nil
	default:
		return 0, fmt.Errorf("compression-level=%d: eStargz has the levels 0 (none), 1 (fast) to 9 (small), and -1 for the default", *level)
	}
}

// tarBuffer is what is collected from a tar writer, which writes headers of 512
// bytes and contents of 32 KiB, before it is handed to the other goroutine.
const tarBuffer = 256 << 10

// layerWriter turns the tar that is written to it into an eStargz blob. It is
// for one goroutine, as any tar's writer is.
type layerWriter struct {
	buf    *bufio.Writer // in front of pipe
	pipe   *io.PipeWriter
	closed bool

	done chan struct{} // closed when info and err are final
	info *estargz.Info
	err  error
}

func newLayerWriter(ctx context.Context, dest io.Writer, opts estargz.Options) *layerWriter {
	pr, pw := io.Pipe()
	w := &layerWriter{
		buf:  bufio.NewWriterSize(pw, tarBuffer),
		pipe: pw,
		done: make(chan struct{}),
	}
	go func() {
		defer close(w.done)
		// Neither end of the pipe knows of ctx, and an export that is given up
		// may never close its writer.
		stop := context.AfterFunc(ctx, func() { pr.CloseWithError(context.Cause(ctx)) })
		defer stop()
		info, err := estargz.Write(ctx, dest, pr, opts)
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			w.err = fmt.Errorf("eStargz layer: %w", err)
		}
		w.info = info
		pr.CloseWithError(w.err)
	}()
	return w
}

func (w *layerWriter) Write(p []byte) (int, error) {
	if w.closed {
		return 0, io.ErrClosedPipe
	}
	return w.buf.Write(p)
}

// Close ends the tar and waits for the blob, since its destination is the
// caller's again afterwards. BuildKit closes once more when it cleans up.
func (w *layerWriter) Close() error {
	if !w.closed {
		w.closed = true
		flushErr := w.buf.Flush()
		w.pipe.Close()
		<-w.done
		if w.err == nil {
			w.err = flushErr
		}
	}
	return w.err
}

// foundNoRoom says whether the layer failed because the disk is full.
func (w *layerWriter) foundNoRoom() bool {
	select {
	case <-w.done:
		return errors.Is(w.err, syscall.ENOSPC) || errors.Is(w.err, syscall.EDQUOT)
	default:
		return false
	}
}

// result is the blob's description. There is none for a layer that failed,
// even where the failure of Close went unheard.
func (w *layerWriter) result() (*estargz.Info, error) {
	if !w.closed {
		return nil, errors.New("eStargz layer: not complete")
	}
	return w.info, w.err
}
