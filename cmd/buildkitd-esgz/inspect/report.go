package inspect

import (
	digest "github.com/opencontainers/go-digest"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// An Image is what there is to say about one image. Sizes are in bytes, layers
// are numbered from 1 at the bottom. Its JSON is what inspect --json prints, and
// docs/inspect.md explains every field.
type Image struct {
	Name          string        `json:"name"`
	Platform      string        `json:"platform"`
	Digest        digest.Digest `json:"digest"`
	Size          int64         `json:"size"`
	PrefetchBytes int64         `json:"prefetchBytes"`
	Fetched       *Fetched      `json:"fetched,omitempty"`
	Profile       *Profile      `json:"profile,omitempty"`
	Layers        []*Layer      `json:"layers"`

	DuplicateBytes int64       `json:"duplicateBytes"`
	Duplicates     []Duplicate `json:"duplicates"`
	ShadowedBytes  int64       `json:"shadowedBytes"`
	Shadowed       []Shadowed  `json:"shadowed"`
}

// Fetched is what came from a registry, tokens and manifests included.
type Fetched struct {
	Requests int64 `json:"requests"`
	Bytes    int64 `json:"bytes"`
}

// A Layer is what there is to say about one layer.
type Layer struct {
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	MediaType string        `json:"mediaType"`
	CreatedBy string        `json:"createdBy,omitempty"`
	Format    Format        `json:"format"`
	Error     string        `json:"error,omitempty"`

	// The rest is known of eStargz layers alone.
	TOC           *TOC     `json:"toc,omitempty"`
	Landmark      Landmark `json:"landmark,omitempty"`
	PrefetchBytes int64    `json:"prefetchBytes"`
	Files         int      `json:"files"`
	FileBytes     int64    `json:"fileBytes"`
	Whiteouts     int      `json:"whiteouts"`

	Prioritized      []File        `json:"prioritized"`
	PrioritizedBytes int64         `json:"prioritizedBytes"`
	Profile          *LayerProfile `json:"profile,omitempty"`
	DuplicateBytes   int64         `json:"duplicateBytes"`
	ShadowedBytes    int64         `json:"shadowedBytes"`

	annotation digest.Digest   // of the TOC
	reader     *estargz.Reader // nil unless the TOC is as it should be
	duplicates map[*estargz.Entry]bool
	shadowed   map[*estargz.Entry]bool
}

// A Format is how a layer is stored.
type Format string

// The formats that are told apart.
const (
	EStargz     Format = "estargz"
	ExternalTOC Format = "estargz-external-toc" // its TOC is in another image
	Stargz      Format = "stargz"               // the format before eStargz
	ZstdChunked Format = "zstd:chunked"
	Gzip        Format = "gzip"
	Zstd        Format = "zstd"
	Tar         Format = "tar"
	Other       Format = "other"
)

// A Landmark says where the prioritized files of a layer end.
type Landmark string

// What a layer may have of landmarks.
const (
	Prefetch   Landmark = "prefetch"
	NoPrefetch Landmark = "no-prefetch"
	NoLandmark Landmark = "none"
)

// A TOC is where the index of a layer lies, and what it is known by.
type TOC struct {
	Offset     int64         `json:"offset"` // in the blob
	Size       int64         `json:"size"`   // compressed
	FooterSize int64         `json:"footerSize"`
	Entries    int           `json:"entries"`
	Digest     digest.Digest `json:"digest,omitempty"`
	Annotation digest.Digest `json:"annotation,omitempty"`
	Verified   bool          `json:"verified"`
}

// A File is a prioritized one.
type File struct {
	Path string `json:"path"`
	Size int64  `json:"size"`
	// Offset and End are the part of the blob that the file's gzip members
	// take.
	Offset int64 `json:"offset"`
	End    int64 `json:"end"`
	// Shared says that its first member begins with another file.
	Shared bool `json:"shared,omitempty"`
}

// A Profile is the one that the image was ordered by.
type Profile struct {
	Digest digest.Digest `json:"digest"`
	Files  int           `json:"files"`
}

// A LayerProfile is what the build reports of a layer that it ordered. Its JSON
// is that of the exporter's answer.
type LayerProfile struct {
	Files      int   `json:"prioritizedFiles"`
	Bytes      int64 `json:"prioritizedBytes"`
	Read       int64 `json:"readBytes"`
	OtherFiles int   `json:"otherFiles"`
	OtherRead  int64 `json:"otherReadBytes"`
}

// A Duplicate is a file with contents that another one has as well, in a lower
// layer or before it in the same.
type Duplicate struct {
	Layer   int    `json:"layer"`
	Path    string `json:"path"`
	Bytes   int64  `json:"bytes"`
	OfLayer int    `json:"ofLayer"`
	OfPath  string `json:"ofPath"`
}

// Shadowed is a file that the image does not show, since an upper layer replaces
// or deletes it.
type Shadowed struct {
	Layer   int    `json:"layer"`
	Path    string `json:"path"`
	Bytes   int64  `json:"bytes"`
	ByLayer int    `json:"byLayer"`
}
