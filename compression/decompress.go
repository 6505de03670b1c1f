package compression

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	bkcompression "github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/iohelper"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// Decompress returns the tar a layer was made from: of an eStargz blob without
// its TOC, of every other one as BuildKit does.
func (Type) Decompress(ctx context.Context, cs content.Store, desc ocispecs.Descriptor) (io.ReadCloser, error) {
	info, err := cs.Info(ctx, desc.Digest)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	is, err := detect(ctx, cs, info)
	if err != nil {
		return nil, err
	}
	if !is {
		return bkcompression.Gzip.Decompress(ctx, cs, desc)
	}
	ra, err := cs.ReaderAt(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	r, err := estargz.Unpack(ra, ra.Size())
	if err != nil {
		ra.Close()
		return nil, fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	return iohelper.WithCloser(r, ra.Close), nil
}
