// Package estargz reads and writes eStargz: a gzip-compressed tar with one
// gzip member for each file or chunk, a table of contents (TOC) behind the tar
// and a footer that says where the TOC starts. A runtime that knows the format
// mounts such a layer and fetches the chunks that are read; every other one
// sees an ordinary gzip layer.
//
// The package knows bytes only, nothing of images, registries or snapshots.
// The compression type of the build daemon writes with it, the lazy worker
// reads with it.
//
// Offsets and sizes are in bytes. "Blob" is the compressed layer; an offset in
// the blob is counted from its first byte.
package estargz

const (
	// DefaultChunkSize is what every known writer of the format uses.
	DefaultChunkSize = 4 << 20

	// TOCDigestAnnotation is set on a layer descriptor: the digest of the
	// TOC's JSON, by which a runtime verifies it before it mounts the layer.
	TOCDigestAnnotation = "containerd.io/snapshot/stargz/toc.digest"

	// UncompressedSizeAnnotation is set on a layer descriptor: the number of
	// bytes the whole blob decompresses to, in decimal.
	UncompressedSizeAnnotation = "io.containers.estargz.uncompressed-size"

	// PrefetchLandmark is the file that ends the prioritized ones.
	PrefetchLandmark = ".prefetch.landmark"

	// NoPrefetchLandmark is the file that says there are no prioritized ones.
	NoPrefetchLandmark = ".no.prefetch.landmark"

	// TOCName is the tar entry that holds the TOC.
	TOCName = "stargz.index.json"

	landmarkContents = 0xf
)
