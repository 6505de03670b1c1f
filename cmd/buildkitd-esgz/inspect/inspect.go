// Package inspect reports how the layers of an image are laid out for lazy
// mounting: which are eStargz, whether their TOCs are the annotated ones, what a
// node prefetches, and which bytes are there twice or hidden by upper layers.
//
// It reads manifests, TOCs and footers, from a registry by ranges, and no file of
// a layer. Everything it reads may be hostile: documents have limits, names are
// escaped before they are printed.
package inspect

import (
	"context"
	"fmt"
	"io"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Options says which image is meant and what else is known of it. The zero value
// works.
type Options struct {
	// Platform is one of a multi-platform image, such as "linux/arm64". Empty
	// means this machine's, or the only one there is.
	Platform string

	// PlainHTTP asks every registry without TLS, and not only those on this
	// machine.
	PlainHTTP bool

	// Metadata is the --metadata-file of the build that made the image. Empty
	// means that nothing is known of its profile.
	Metadata string

	// Warnings is where problems with the configuration of the Docker client
	// are written. Nil discards them.
	Warnings io.Writer
}

// Inspect reports on an image: a reference, a directory with an OCI layout, or a
// tar of one. A layer that cannot be read is reported as such, and is no error.
func Inspect(ctx context.Context, name string, opts Options) (*Image, error) {
	src, err := open(name, opts)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	im, err := load(ctx, src, opts.Platform)
	if err != nil {
		return nil, err
	}
	im.Name = name
	if err := im.readLayers(ctx, src); err != nil {
		return nil, err
	}
	im.findDuplicates()
	im.findShadowed()
	im.Fetched = src.fetched()
	if opts.Metadata != "" {
		if err := im.readMetadata(opts.Metadata); err != nil {
			return nil, err
		}
	}
	return im, nil
}

// A source holds one or more images.
type source interface {
	// roots returns what the name that was given leads to: manifests, or
	// indexes of them.
	roots(context.Context) ([]ocispecs.Descriptor, error)
	// document returns a whole manifest, index or configuration.
	document(context.Context, ocispecs.Descriptor) ([]byte, error)
	// blob returns a layer.
	blob(ocispecs.Descriptor) ranged
	// fetched tells what came from a registry, nil if nothing can.
	fetched() *Fetched
	io.Closer
}

// ranged is what can be read in ranges of n bytes from an offset on.
type ranged interface {
	Range(ctx context.Context, off, n int64) (io.ReadCloser, error)
}

// Limits on what an image says. Docker accepts manifests of 4 MiB; a TOC of
// maxEntries has less than maxTOC compressed.
const (
	maxDocument = 4 << 20
	maxLayers   = 1000
	maxBlob     = 1 << 44
	maxTOC      = 512 << 20
	maxEntries  = 1 << 22 // of the TOCs of all layers
)

// tails is how many layers are asked for their last bytes at once.
const tails = 8

// readLayers reads the footers of all layers side by side, since each costs a
// round trip, and then one TOC after the other, since each may take much memory.
func (im *Image) readLayers(ctx context.Context, src source) error {
	eg, egCtx := errgroup.WithContext(ctx)
	eg.SetLimit(tails)
	ends := make([]*ending, len(im.Layers))
	for i, l := range im.Layers {
		eg.Go(func() error {
			ends[i] = l.readFooter(egCtx, src)
			return egCtx.Err()
		})
	}
	if err := eg.Wait(); err != nil {
		return err
	}
	entries := 0
	for i, l := range im.Layers {
		if ends[i] == nil {
			continue
		}
		l.readTOC(ctx, ends[i])
		if err := ctx.Err(); err != nil {
			return err
		}
		if l.reader == nil {
			continue
		}
		if entries += l.TOC.Entries; entries > maxEntries {
			return fmt.Errorf("the TOCs up to layer %d have more than %d entries", i+1, maxEntries)
		}
		l.describe()
		im.PrefetchBytes = sum(im.PrefetchBytes, l.PrefetchBytes)
	}
	return nil
}

// problems is the error that a command ends with whose report is printed.
func (im *Image) problems() error {
	bad := 0
	for _, l := range im.Layers {
		if l.Error != "" {
			bad++
		}
	}
	if bad == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d layers cannot be mounted or checked", bad, len(im.Layers))
}

// sum adds sizes that a TOC may have made up.
func sum(a, b int64) int64 {
	if s := a + b; s >= 0 {
		return s
	}
	return 1<<63 - 1
}
