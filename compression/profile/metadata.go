package profile

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
)

// metadataKey begins the keys under which a build's result carries profiles.
// Neither images nor the answer to the client show them.
const metadataKey = "buildkitd-esgz.profile/"

// MetadataKey is where a build's result carries the profile of a platform that
// answers the request: exporters of one build may want different ones.
func (r *Request) MetadataKey(platform string) string {
	return fmt.Sprintf("%s%x/%s", metadataKey, sha256.Sum256(fmt.Appendf(nil, "%#v", *r)), platform)
}

// BaseKey is where a build's result carries the diffIDs of the base image of a
// platform, a list as JSON, if the frontend does not say what its base image is.
func BaseKey(platform string) string { return metadataKey + "base/" + platform }

// maxPacked bounds the JSON in a result. The largest profile of 100,000 files
// measures some 15 MB.
const maxPacked = 64 << 20

// Pack returns the profile as a result carries it. A result may travel to the
// client and back in messages of 16 MB, whence the compression. It is text, since
// BuildKit writes what the result of a failed export carries into its history, as
// strings of a message that must be UTF-8.
func (p *Profile) Pack() ([]byte, error) {
	encoded, err := p.Encode()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	text := base64.NewEncoder(base64.StdEncoding, &b)
	z := gzip.NewWriter(text)
	if _, err := z.Write(encoded); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	if err := errors.Join(z.Close(), text.Close()); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	return b.Bytes(), nil
}

// Attached returns the profile of a platform in a result's metadata that answers
// the request, nil if none was made.
func (r *Request) Attached(metadata map[string][]byte, platform string) (*Profile, error) {
	packed, ok := metadata[r.MetadataKey(platform)]
	if !ok {
		return nil, nil
	}
	encoded, err := unpack(packed)
	if err != nil {
		return nil, fmt.Errorf("profile of %s: %w", platform, err)
	}
	return Decode(encoded)
}

func unpack(packed []byte) ([]byte, error) {
	z, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, bytes.NewReader(packed)))
	if err != nil {
		return nil, err
	}
	encoded, err := io.ReadAll(io.LimitReader(z, maxPacked+1))
	if err != nil {
		return nil, err
	}
	if len(encoded) > maxPacked {
		return nil, fmt.Errorf("more than %d bytes", maxPacked)
	}
	return encoded, nil
}
