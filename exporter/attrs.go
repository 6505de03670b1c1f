package exporter

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression"
	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// prefix begins the attributes that are ours alone.
const prefix = "estargz-"

const (
	attrReorder = prefix + "reorder"
	attrConvert = prefix + "convert"
)

// Attributes of BuildKit's that mean something here.
const (
	attrCompression      = "compression"
	attrLevel            = "compression-level"
	attrOCITypes         = "oci-mediatypes"
	attrRewriteTimestamp = "rewrite-timestamp"
)

const needsEStargz = "needs " + attrCompression + "=" + compression.Name

// settings is what our attributes set, but for those about profiles.
type settings struct {
	compression.Options
	reorderAll bool
}

// own are the attributes for that, each with what its value does.
var own = map[string]func(s *settings, value string) error{
	// A reader holds and verifies a chunk as a whole, and each chunk is an
	// entry in the TOC and may be a request.
	"estargz-chunk-size": func(s *settings, value string) (err error) {
		s.ChunkSize, err = parseSize(value, 64<<10, 64<<20)
		return err
	},
	// The stock library's VerifyTOC (v0.18.2) refuses members that hold several
	// files. The stargz-snapshotter does not call it: it compares the TOC's
	// digest and then each chunk's.
	"estargz-min-chunk-size": func(s *settings, value string) (err error) {
		s.MinChunkSize, err = parseSize(value, 0, 64<<20)
		return err
	},
	attrReorder: func(s *settings, value string) error {
		switch value {
		case "new", "all":
			s.reorderAll = value == "all"
			return nil
		}
		return errors.New("give new, which leaves layers with a landmark as they are, or all")
	},
	// The frontend acts on it.
	attrConvert: func(*settings, string) error { return nil },
}

// wantsEStargz says whether eStargz is the compression that attrs ask for.
func wantsEStargz(attrs map[string]string) bool {
	return attrs[attrCompression] == compression.Name
}

// parse takes our attributes out of attrs that ask for eStargz. The rest is
// for BuildKit.
func (d Defaults) parse(attrs map[string]string) (s settings, rest map[string]string, err error) {
	s, rest = d.settings, maps.Clone(attrs)
	if _, given := attrs[attrLevel]; !given && d.level != "" {
		rest[attrLevel] = d.level
	}
	for _, k := range ownIn(attrs) {
		set, known := own[k]
		if !known {
			return s, nil, fmt.Errorf("unknown attribute %s=%s: there are %s", k, attrs[k],
				strings.Join(append(slices.Sorted(maps.Keys(own)), profile.Attributes()...), ", "))
		}
		if err := set(&s, attrs[k]); err != nil {
			return s, nil, fmt.Errorf("%s=%s: %w", k, attrs[k], err)
		}
		delete(rest, k)
	}
	return s, rest, checkLevel(attrs)
}

// ownIn lists what of attrs is ours by its name, known or not, always in the
// same order.
func ownIn(attrs map[string]string) []string {
	var keys []string
	for k := range attrs {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// refuseOwn is for who cannot do anything with our attributes: better an error
// than a user who believes they worked.
func refuseOwn(attrs map[string]string, why string) error {
	for _, k := range ownIn(attrs) {
		return fmt.Errorf("%s=%s: %s", k, attrs[k], why)
	}
	return nil
}

// refuseImages is for a build cache, whose layers stay in the order of their tars
// and are no image.
func refuseImages(attrs map[string]string) error {
	ofImages := append(profile.Attributes(), attrReorder, attrConvert)
	for _, k := range ownIn(attrs) {
		if slices.Contains(ofImages, k) {
			return fmt.Errorf("%s=%s: a cache is no image, and its layers are in no order; give it to -o", k, attrs[k])
		}
	}
	return nil
}

func parseSize(value string, least, most int64) (int64, error) {
	n, err := units.RAMInBytes(value)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("give bytes or a size like 4MiB, from %s to %s", size(least), size(most))
	}
	return n, nil
}

func size(n int64) string { return units.BytesSize(float64(n)) }

var errLevel = errors.New("give a number from 0 (none) to 9 (smallest)")

func checkLevel(attrs map[string]string) error {
	v, ok := attrs[attrLevel]
	if !ok {
		return nil
	}
	level, err := strconv.Atoi(v)
	if err != nil {
		return fmt.Errorf("%s=%s: %w", attrLevel, v, errLevel)
	}
	_, err = compression.Level(&level)
	return err
}

// checkOCITypes is about images. In a build cache BuildKit keeps a layer's
// annotations whatever the media type.
func checkOCITypes(attrs map[string]string) error {
	oci, err := strconv.ParseBool(attrs[attrOCITypes])
	if err == nil && !oci {
		return fmt.Errorf("%s=%s: an eStargz layer needs the annotations of OCI media types; leave %s out, or take another %s than %s",
			attrOCITypes, attrs[attrOCITypes], attrOCITypes, attrCompression, compression.Name)
	}
	return nil // what is no bool is BuildKit's to refuse
}

// takeRewriteTimestamp removes the attribute and returns its value.
func takeRewriteTimestamp(attrs map[string]string) (bool, error) {
	v, ok := attrs[attrRewriteTimestamp]
	if !ok {
		return false, nil
	}
	delete(attrs, attrRewriteTimestamp)
	on, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("%s=%s: give true or false", attrRewriteTimestamp, v)
	}
	return on, nil
}
