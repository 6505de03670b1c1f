package frontend

import (
	"context"
	"fmt"
	"regexp"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// mismatch is BuildKit's error about an index of which it has looked at the first
// manifest without a platform. It has no type of its own.
var mismatch = regexp.MustCompile("no match for platform in manifest (" + digest.DigestRegexp.String() + ")")

// mismatched returns the index that an error of resolve is about, nil if none is known
// or there. Other errors than mismatch do not name it: the source may, by its digest.
func (c *conversion) mismatched(ctx context.Context, err error) *resolved {
	var d digest.Digest
	if m := mismatch.FindStringSubmatch(err.Error()); m != nil {
		d = digest.Digest(m[1])
	} else if d = digestIn(c.source); d == "" {
		return nil
	}
	ref, err := pinned(c.source, d)
	if err != nil {
		return nil
	}
	root, err := c.descriptor(ctx, d)
	if err != nil || !images.IsIndexType(root.MediaType) {
		return nil
	}
	return &resolved{ref: ref, root: root}
}

// digestIn returns the digest that a reference has, or "".
func digestIn(ref string) digest.Digest {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ""
	}
	if digested, ok := named.(reference.Digested); ok {
		return digested.Digest()
	}
	return ""
}

// partsOf returns the images of an index, one for each platform. What else it has is
// left out with a warning, but for attestations.
func (c *conversion) partsOf(ctx context.Context, index *ocispecs.Index) (all []part, err error) {
	found := make([]*part, len(index.Manifests))
	from := map[string]ocispecs.Descriptor{} // by platform
	// BuildKit takes a manifest for which the index names the platform before any other.
	for _, named := range []bool{true, false} {
		for i, m := range index.Manifests {
			if isAttestation(m) || namesPlatform(m) != named {
				continue
			}
			one, err := c.partOf(ctx, m)
			if err != nil {
				return nil, err
			}
			if one == nil {
				continue
			}
			id := idOf(one.platform)
			if earlier, twice := from[id]; !twice {
				from[id], found[i] = m, one
			} else if earlier.Digest != m.Digest {
				c.leave(m, fmt.Sprintf("it is for %s, and so is %s", id, earlier.Digest))
			}
		}
	}
	for _, one := range found {
		if one != nil {
			all = append(all, *one)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no manifest of the index is an image: %s", c.source, c.left)
	}
	return all, nil
}

func isAttestation(m ocispecs.Descriptor) bool {
	return m.Platform != nil && m.Platform.OS == "unknown"
}

func namesPlatform(m ocispecs.Descriptor) bool {
	return m.Platform != nil && m.Platform.OS != "" && m.Platform.Architecture != ""
}

// partOf returns the image of a manifest, nil if it is left out.
func (c *conversion) partOf(ctx context.Context, m ocispecs.Descriptor) (*part, error) {
	named := namesPlatform(m)
	switch {
	case images.IsIndexType(m.MediaType):
		return nil, fmt.Errorf("%s has the index %s in its index: convert that by its digest, or choose platforms with --platform", c.source, m.Digest)
	case !images.IsManifestType(m.MediaType):
		c.leave(m, fmt.Sprintf("it is no manifest, but of type %q", m.MediaType))
		return nil, nil
	case named && m.ArtifactType == "":
		return &part{platform: *m.Platform, ref: c.source}, nil
	}
	// It is resolved by its own digest: of manifests without a platform BuildKit takes the
	// first one for any platform.
	ref, err := pinned(c.source, m.Digest)
	if err != nil {
		return nil, err
	}
	found, err := c.resolve(ctx, ref, nil)
	if err != nil {
		// BuildKit has the manifest by now, and refuses a config that is not an image's.
		var manifest ocispecs.Manifest
		if c.read(ctx, m, &manifest) != nil || images.IsConfigType(manifest.Config.MediaType) {
			return nil, err
		}
		reason := "it is no image, but has a config of type " + manifest.Config.MediaType
		if m.ArtifactType != "" {
			reason = "it is no image, but " + m.ArtifactType
		}
		c.leave(m, reason)
		return nil, nil
	}
	if named {
		return &part{platform: *m.Platform, ref: c.source}, nil
	}
	if p := found.config.Platform; p.OS == "" || p.Architecture == "" {
		c.leave(m, "neither the index nor its config names a platform")
		return nil, nil
	}
	return &part{platform: found.config.Platform, ref: found.ref, inIndex: m.Annotations}, nil
}

func (c *conversion) leave(m ocispecs.Descriptor, reason string) {
	c.left = append(c.left, fmt.Sprintf("%s leaves out manifest %s of %s: %s", attrConvert, m.Digest, c.source, reason))
}

// warn tells what was left out. Clients show a warning only of a step that was built.
func (c *conversion) warn(ctx context.Context, res *frontend.Result) error {
	var refs []solver.ResultProxy
	_ = res.EachRef(func(ref solver.ResultProxy) error { refs = append(refs, ref); return nil })
	if len(c.left) == 0 || len(refs) == 0 {
		return nil
	}
	g, err := parse(refs[0].Definition())
	if err != nil {
		return err
	}
	if _, err := refs[0].Result(ctx); err != nil {
		return err
	}
	for _, msg := range c.left {
		_ = c.bridge.Warn(ctx, digest.Digest(g.head.Digest), msg, frontend.WarnOpts{})
	}
	return nil
}
