package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// load reads the manifest and the configuration of the image for a platform.
func load(ctx context.Context, src source, platform string) (*Image, error) {
	desc, err := choose(ctx, src, platform)
	if err != nil {
		return nil, err
	}
	var manifest ocispecs.Manifest
	if err := decode(ctx, src, desc, &manifest); err != nil {
		return nil, err
	}
	if len(manifest.Layers) > maxLayers {
		return nil, fmt.Errorf("manifest %s: %d layers are more than %d", desc.Digest, len(manifest.Layers), maxLayers)
	}
	if !images.IsConfigType(manifest.Config.MediaType) {
		return nil, fmt.Errorf("manifest %s is not of an image: its configuration is %q", desc.Digest, manifest.Config.MediaType)
	}
	var config ocispecs.Image
	if err := decode(ctx, src, manifest.Config, &config); err != nil {
		return nil, err
	}
	if wanted, err := platforms.Parse(platform); err == nil && !platforms.OnlyStrict(wanted).Match(config.Platform) {
		return nil, fmt.Errorf("the image is for %s, not for %s", platforms.Format(config.Platform), platform)
	}
	im := &Image{Digest: desc.Digest, Platform: platforms.Format(platforms.Normalize(config.Platform)), Layers: []*Layer{}}
	for i, layer := range manifest.Layers {
		if err := check(layer, maxBlob); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		im.Layers = append(im.Layers, newLayer(layer))
		im.Size += layer.Size
	}
	im.addHistory(config.History)
	return im, nil
}

// addHistory says which instruction made each layer, if the configuration has
// one for each.
func (im *Image) addHistory(history []ocispecs.History) {
	history = slices.DeleteFunc(slices.Clone(history), func(h ocispecs.History) bool { return h.EmptyLayer })
	if len(history) != len(im.Layers) {
		return
	}
	for i, h := range history {
		im.Layers[i].CreatedBy = h.CreatedBy
	}
}

// check refuses descriptors that nothing can be read by.
func check(desc ocispecs.Descriptor, most int64) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", desc.Digest, err)
	}
	if desc.Size < 0 || desc.Size > most {
		return fmt.Errorf("%s: %d bytes are not from 0 to %d", desc.Digest, desc.Size, most)
	}
	return nil
}

// decode reads a document and verifies its digest. What has one media type by its
// descriptor must not have another by its own word: it might be read as either.
func decode(ctx context.Context, src source, desc ocispecs.Descriptor, to any) error {
	if err := check(desc, maxDocument); err != nil {
		return err
	}
	text, err := src.document(ctx, desc)
	if err != nil {
		return err
	}
	if got := desc.Digest.Algorithm().FromBytes(text); got != desc.Digest {
		return fmt.Errorf("%s: the digest of what was read is %s", desc.Digest, got)
	}
	var own struct {
		MediaType string `json:"mediaType"`
	}
	err = errors.Join(json.Unmarshal(text, &own), json.Unmarshal(text, to))
	if err == nil && own.MediaType != "" && own.MediaType != desc.MediaType {
		err = fmt.Errorf("it says that it is %q, its descriptor %q", own.MediaType, desc.MediaType)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", desc.Digest, err)
	}
	return nil
}

// Limits on indexes: how deep they lie in each other, and how many manifests
// there are in all.
const (
	maxDepth     = 4
	maxManifests = 1000
)

// choose finds the manifest for a platform.
func choose(ctx context.Context, src source, platform string) (ocispecs.Descriptor, error) {
	none := ocispecs.Descriptor{}
	roots, err := src.roots(ctx)
	if err != nil {
		return none, err
	}
	all, err := manifests(ctx, src, roots, 0)
	if err != nil {
		return none, err
	}
	if len(all) == 0 {
		return none, errors.New("there is no image in it")
	}
	matcher := platforms.Default()
	if platform != "" {
		p, err := platforms.Parse(platform)
		if err != nil {
			return none, fmt.Errorf("platform %q: %w", platform, err)
		}
		matcher = platforms.OnlyStrict(p)
	} else if len(all) == 1 {
		return all[0], nil
	}
	matching := slices.DeleteFunc(slices.Clone(all), func(d ocispecs.Descriptor) bool {
		return d.Platform != nil && !matcher.Match(*d.Platform)
	})
	slices.SortStableFunc(matching, func(a, b ocispecs.Descriptor) int {
		switch {
		case a.Platform == nil || b.Platform == nil:
			return 0
		case matcher.Less(*a.Platform, *b.Platform):
			return -1
		case matcher.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	if len(matching) == 0 {
		return none, fmt.Errorf("there is no image for the platform; give one of %s with --platform", names(all))
	}
	if len(matching) > 1 && matching[0].Digest != matching[1].Digest && !preferred(matcher, matching[0], matching[1]) {
		return none, fmt.Errorf("several images match: %s; name one by tag or digest", names(matching))
	}
	return matching[0], nil
}

func preferred(m platforms.MatchComparer, a, b ocispecs.Descriptor) bool {
	return a.Platform != nil && b.Platform != nil && m.Less(*a.Platform, *b.Platform)
}

// manifests returns those of images that descriptors lead to. Attestations are
// none.
func manifests(ctx context.Context, src source, descs []ocispecs.Descriptor, depth int) (all []ocispecs.Descriptor, err error) {
	for _, desc := range descs {
		switch {
		case isAttestation(desc):
		case images.IsManifestType(desc.MediaType):
			all = append(all, desc)
		case images.IsIndexType(desc.MediaType):
			if depth == maxDepth {
				return nil, fmt.Errorf("%s: indexes lie more than %d deep", desc.Digest, maxDepth)
			}
			var index ocispecs.Index
			if err := decode(ctx, src, desc, &index); err != nil {
				return nil, err
			}
			below, err := manifests(ctx, src, index.Manifests, depth+1)
			if err != nil {
				return nil, err
			}
			all = append(all, below...)
		}
		if len(all) > maxManifests {
			return nil, fmt.Errorf("there are more than %d manifests", maxManifests)
		}
	}
	return all, nil
}

// isAttestation says whether a manifest holds what BuildKit tells about another
// one.
func isAttestation(desc ocispecs.Descriptor) bool {
	return desc.Annotations["vnd.docker.reference.type"] == "attestation-manifest" ||
		desc.Platform != nil && desc.Platform.OS == "unknown"
}

// names lists images for an error: by platform, by the name that an OCI layout
// gives them, and by digest.
func names(descs []ocispecs.Descriptor) string {
	var all []string
	for _, d := range descs {
		words := []string{}
		if d.Platform != nil {
			words = append(words, platforms.Format(*d.Platform))
		}
		if name := d.Annotations[ocispecs.AnnotationRefName]; name != "" {
			words = append(words, name)
		}
		if len(words) == 0 {
			words = append(words, d.Digest.String())
		}
		all = append(all, strings.Join(words, " "))
	}
	return strings.Join(all, ", ")
}
