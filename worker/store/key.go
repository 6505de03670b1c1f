package store

import (
	"fmt"
	"strings"

	digest "github.com/opencontainers/go-digest"
)

// A Key names a layer: one blob may come with different TOCs, and what is not
// verified by one is not stored.
type Key struct {
	Blob digest.Digest // of the compressed layer
	TOC  digest.Digest // of the TOC's JSON, from the layer's annotation
}

// dir is the name of the layer's directory. It has no colon, which separates
// directories in mount options.
func (k Key) dir() (string, error) {
	if err := k.Blob.Validate(); err != nil {
		return "", fmt.Errorf("blob %q: %w", k.Blob, err)
	}
	if err := k.TOC.Validate(); err != nil {
		return "", fmt.Errorf("TOC %q: %w", k.TOC, err)
	}
	if k.TOC.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("TOC %s: want a SHA-256", k.TOC)
	}
	return dashed(k.Blob) + "." + dashed(k.TOC), nil
}

func dashed(d digest.Digest) string { return strings.Replace(d.String(), ":", "-", 1) }

// keyOf is the key of a directory.
func keyOf(dir string) (Key, bool) {
	blob, toc, _ := strings.Cut(dir, ".")
	k := Key{
		Blob: digest.Digest(strings.Replace(blob, "-", ":", 1)),
		TOC:  digest.Digest(strings.Replace(toc, "-", ":", 1)),
	}
	name, err := k.dir()
	return k, err == nil && name == dir
}
