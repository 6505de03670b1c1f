package inspect

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	digest "github.com/opencontainers/go-digest"
)

// keyProfiles is where the metadata of a build has what its exporter did for
// profiles.
const keyProfiles = "estargz.profiles"

// maxMetadata bounds the file, which BuildKit's provenance may make large.
const maxMetadata = 64 << 20

// imageProfile is what the metadata has of the image of one platform.
type imageProfile struct {
	Profile digest.Digest `json:"profile"`
	Files   int           `json:"files"`
	Layers  []struct {
		Digest digest.Digest `json:"digest"`
		LayerProfile
	} `json:"layers"`
}

// errForeignMetadata is what is wrong with a file that has profiles of other
// images.
var errForeignMetadata = errors.New("it has no profile of an image with these layers")

// readMetadata takes the profile of the image from a metadata file.
func (im *Image) readMetadata(file string) error {
	profiles, err := readProfiles(file)
	if err != nil {
		return fmt.Errorf("metadata %s: %w", file, err)
	}
	for _, p := range profiles {
		if im.isOf(p) {
			im.addProfile(p)
			return nil
		}
	}
	return fmt.Errorf("metadata %s: %w", file, errForeignMetadata)
}

// readProfiles finds profiles in the file of buildx build or buildctl, and in
// that of buildx bake, which has one object for each target.
func readProfiles(file string) ([]imageProfile, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxMetadata+1))
	if err == nil && len(text) > maxMetadata {
		err = fmt.Errorf("more than %d bytes", maxMetadata)
	}
	if err != nil {
		return nil, err
	}
	var top map[string]json.RawMessage
	if err := json.Unmarshal(text, &top); err != nil {
		return nil, err
	}
	objects := []map[string]json.RawMessage{top}
	for _, value := range top {
		var target map[string]json.RawMessage
		if json.Unmarshal(value, &target) == nil {
			objects = append(objects, target)
		}
	}
	var all []imageProfile
	for _, o := range objects {
		if o[keyProfiles] == nil {
			continue
		}
		profiles, err := decodeProfiles(o[keyProfiles])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", keyProfiles, err)
		}
		all = append(all, profiles...)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("it has no %s: the build wanted no profile, or another daemon ran it", keyProfiles)
	}
	return all, nil
}

// decodeProfiles reads a list, or a string that holds one, as buildx and
// buildctl write what an exporter answers.
func decodeProfiles(value json.RawMessage) (profiles []imageProfile, err error) {
	var text string
	if json.Unmarshal(value, &text) == nil {
		value = json.RawMessage(text)
	}
	return profiles, json.Unmarshal(value, &profiles)
}

// isOf says whether a profile has just the layers of the image.
func (im *Image) isOf(p imageProfile) bool {
	if len(p.Layers) != len(im.Layers) {
		return false
	}
	for i, l := range p.Layers {
		if l.Digest != im.Layers[i].Digest {
			return false
		}
	}
	return true
}

func (im *Image) addProfile(p imageProfile) {
	im.Profile = &Profile{Digest: p.Profile, Files: p.Files}
	for i := range p.Layers {
		im.Layers[i].Profile = &p.Layers[i].LayerProfile
	}
}
