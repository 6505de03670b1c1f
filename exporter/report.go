package exporter

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// KeyProfiles is the key under which the exporter answers with what it did for
// profiles: a list, JSON, of an entry for each image.
const KeyProfiles = "estargz.profiles"

// A report collects what is answered. It is safe for concurrent use: images of
// several platforms are exported at once.
type report struct {
	mu     sync.Mutex
	images map[string]imageReport
}

// imageReport is about the image of one platform.
type imageReport struct {
	Platform string        `json:"platform"`
	Profile  digest.Digest `json:"profile"` // of the profile's encoding
	Files    int           `json:"files"`   // that the profile lists
	Layers   []layerReport `json:"layers"`
}

// layerReport is about one layer.
type layerReport struct {
	Digest digest.Digest `json:"digest"`
	Files  int           `json:"prioritizedFiles"`
	Bytes  int64         `json:"prioritizedBytes"` // uncompressed
	Read   int64         `json:"readBytes"`        // of those, by the profile

	// What the profile lists of the layer and stays behind the landmark.
	OtherFiles int   `json:"otherFiles"`
	OtherRead  int64 `json:"otherReadBytes"`
}

func (r *report) add(platform string, p *profile.Profile, descs []ocispecs.Descriptor, figures []layerReport) error {
	encoded, err := p.Encode()
	if err != nil {
		return err
	}
	for i := range figures {
		figures[i].Digest = descs[i].Digest
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.images == nil {
		r.images = map[string]imageReport{}
	}
	r.images[platform] = imageReport{
		Platform: platform,
		Profile:  digest.FromBytes(encoded),
		Files:    len(p.Files),
		Layers:   figures,
	}
	return nil
}

// answer adds the report to what the exporter answers.
func (r *report) answer(response map[string]string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.images) == 0 {
		return nil
	}
	var images []imageReport
	for _, platform := range slices.Sorted(maps.Keys(r.images)) {
		images = append(images, r.images[platform])
	}
	encoded, err := json.Marshal(images)
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	response[KeyProfiles] = string(encoded)
	return nil
}
