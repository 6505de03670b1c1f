// Package compression is BuildKit's compression.Type for eStargz: what stands
// behind -o compression=estargz and --cache-to compression=estargz. It drives
// the format in compression/estargz and keeps the labels and annotations that
// BuildKit's cache expects of a layer; it parses no attributes and knows no
// exporter. The exporter package puts a Type where BuildKit has its own.
//
// # Which layers are converted
//
// With force-compression BuildKit asks NeedsConversion of every layer of an
// image. The answer rests on what is known without pulling: a layer whose
// descriptor names a TOC digest is eStargz and stays as it is, lazy if it was.
// A blob without that annotation is looked at when it is local, and converted
// when it is not.
//
// BuildKit files the converted blobs of a layer as its variants and takes the
// first one that needs no conversion. Two exports with different chunk sizes
// must not be handed each other's, so a blob written here is labelled with its
// chunk sizes, and one that carries such labels counts as converted for these
// sizes only. It may carry several: a layer of small files is the same blob
// whatever the chunk size. A blob from elsewhere counts as converted whatever
// its chunks are, because nobody asked this builder for others, and finding
// out would mean to pull it. The level is not compared, as BuildKit does not
// compare it for any compression.
package compression

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	cerrdefs "github.com/containerd/errdefs"
	bkcompression "github.com/moby/buildkit/util/compression"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// Name is what users call this compression in attributes. It is BuildKit's own
// name, which its exporters accept.
const Name = "estargz"

// Options are the properties of the blobs a Type writes that the name of the
// compression does not tell. The level comes with BuildKit's Config.
type Options struct {
	// ChunkSize is the largest number of uncompressed bytes in one chunk.
	// Zero means estargz.DefaultChunkSize.
	ChunkSize int64
	// MinChunkSize lets small files share a gzip member until it holds this
	// many uncompressed bytes.
	MinChunkSize int64
}

// Type is the eStargz compression type. It is safe for concurrent use, and
// values that were made alike are equal.
type Type struct {
	pool *estargz.Pool
	opts Options
}

var _ bkcompression.Type = Type{}

// New returns a type whose layers, however many at once, share the workers and
// the memory of pool.
func New(pool *estargz.Pool, opts Options) Type {
	if opts.ChunkSize == 0 {
		opts.ChunkSize = estargz.DefaultChunkSize
	}
	return Type{pool: pool, opts: opts}
}

// String also names the chunk sizes when they are not the default ones:
// BuildKit lets concurrent conversions of a layer that have the same name
// share one result.
func (t Type) String() string {
	if t.opts == (Options{ChunkSize: estargz.DefaultChunkSize}) {
		return Name
	}
	return fmt.Sprintf("%s/%s", Name, t.opts)
}

func (o Options) String() string {
	return fmt.Sprintf("%d-%d", o.ChunkSize, o.MinChunkSize)
}

// MediaType is gzip's: to everyone who does not look for a TOC that is what an
// eStargz layer is.
func (Type) MediaType() string { return ocispecs.MediaTypeImageLayerGzip }

// OnlySupportOCITypes is true because only OCI descriptors have the annotation
// for the TOC's digest.
func (Type) OnlySupportOCITypes() bool { return true }

// NeedsComputeDiffBySelf is true because containerd's differ has no eStargz.
func (Type) NeedsComputeDiffBySelf(bkcompression.Config) bool { return true }

// NeedsConversion says whether the layer that desc describes has to be
// rewritten. It never pulls.
func (t Type) NeedsConversion(ctx context.Context, cs content.Store, desc ocispecs.Descriptor) (bool, error) {
	if !images.IsLayerType(desc.MediaType) {
		return false, nil
	}
	from, err := bkcompression.FromMediaType(desc.MediaType)
	if err != nil {
		return false, err
	}
	if from != bkcompression.Gzip {
		// zstd:chunked layers have the annotation of a TOC as well.
		return true, nil
	}
	info, err := cs.Info(ctx, desc.Digest)
	if cerrdefs.IsNotFound(err) {
		return !hasTOCDigest(desc), nil
	}
	if err != nil {
		return false, fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	if writtenHere(info.Labels) {
		return !writtenWith(info.Labels, t.opts), nil
	}
	if hasTOCDigest(desc) {
		return false, nil
	}
	is, err := detect(ctx, cs, info)
	return !is, err
}

// IsEStargz says whether a descriptor is that of an eStargz layer, as far as can
// be told without its bytes: the layers of zstd:chunked have a TOC digest too.
func IsEStargz(desc ocispecs.Descriptor) bool {
	from, err := bkcompression.FromMediaType(desc.MediaType)
	return err == nil && from == bkcompression.Gzip && hasTOCDigest(desc)
}

func hasTOCDigest(desc ocispecs.Descriptor) bool {
	return digest.Digest(desc.Annotations[estargz.TOCDigestAnnotation]).Validate() == nil
}
