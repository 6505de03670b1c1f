package frontend

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	srctypes "github.com/moby/buildkit/source/types"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// attrConvert is the attribute of an exporter that names the image to convert.
const attrConvert = "estargz-convert"

// A conversion builds an image again instead of a frontend: for all its platforms,
// with the same config and annotations. The Dockerfile's
// frontend would run the ONBUILD instructions of the image, and keep of the
// config only what it knows.
type conversion struct {
	bridge  frontend.FrontendLLBBridge
	content content.Provider // has the manifests that the bridge has resolved
	source  string           // reference of the image, with its digest once that is known
	mode    string           // how it is resolved
	imports []frontend.CacheOptionsEntry
	noCache bool
	sid     string
	left    []string // what is left out of an index, and why
}

// parseSource returns an attribute's value as a reference with a tag or a digest.
func parseSource(value string) (string, error) {
	named, err := reference.ParseNormalizedNamed(value)
	if err != nil {
		return "", fmt.Errorf("%s=%s: give the reference of an image: %w", attrConvert, value, err)
	}
	return reference.TagNameOnly(named).String(), nil
}

// convert is the conversion that a wish asks for, as a frontend.
func (f *Frontend) convert(ctx context.Context, bridge frontend.FrontendLLBBridge, w *wish, opt map[string]string, sid string) (*frontend.Result, error) {
	if err := checkOptions(opt); err != nil {
		return nil, err
	}
	imports, err := importsOf(opt)
	if err != nil {
		return nil, err
	}
	_, noCache := opt["no-cache"]
	c := &conversion{
		bridge: bridge, content: f.opts.Content, source: w.source, mode: opt["image-resolve-mode"],
		imports: imports, noCache: noCache, sid: sid,
	}
	res, err := c.result(ctx, opt["platform"], opt["multi-platform"] == "true")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", attrConvert, err)
	}
	return res, nil
}

// checkOptions refuses options of the Dockerfile's frontend that would do nothing.
func checkOptions(opt map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(opt)) {
		ofStages := k == "no-cache" && opt[k] != ""
		if k == "target" || strings.HasPrefix(k, "context:") || ofStages {
			return fmt.Errorf("%s: no Dockerfile is built: leave %s out", attrConvert, k)
		}
		if strings.HasPrefix(k, "label:") {
			return fmt.Errorf("%s: the config stays as it is: leave %s out", attrConvert, k)
		}
	}
	return nil
}

// importsOf returns the caches that a build reads, as clients pass them to a
// frontend.
func importsOf(opt map[string]string) (imports []frontend.CacheOptionsEntry, err error) {
	const key = "cache-imports"
	if opt[key] == "" {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(opt[key]), &imports); err != nil {
		return nil, fmt.Errorf("%s=%s: %w", key, opt[key], err)
	}
	return imports, nil
}

// A part of the source is its image for one platform.
type part struct {
	platform ocispecs.Platform
	ref      string // the source, or one manifest of its index
	// inIndex are annotations that the index has for that manifest.
	inIndex map[string]string
}

// result has an image for each of the platforms, which are separated by commas.
// Without any it is all that the source has.
func (c *conversion) result(ctx context.Context, wanted string, many bool) (*frontend.Result, error) {
	ps, index, err := c.choose(ctx, wanted)
	if err != nil {
		return nil, err
	}
	many = many || len(ps) > 1 || wanted == "" && index != nil
	res := &frontend.Result{}
	if many && index != nil {
		for k, v := range index.Annotations {
			res.AddMeta(exptypes.AnnotationIndexKey(k), []byte(v))
		}
	}
	all := exptypes.Platforms{Platforms: make([]exptypes.Platform, len(ps))}
	eg, egCtx := errgroup.WithContext(ctx)
	for i, p := range ps {
		eg.Go(func() error {
			one, err := c.image(egCtx, p)
			if err != nil {
				return err
			}
			id := idOf(one.platform)
			all.Platforms[i] = exptypes.Platform{ID: id, Platform: one.platform}
			one.addTo(res, id, many)
			return nil
		})
	}
	err = eg.Wait()
	if err == nil {
		err = c.warn(ctx, res)
	}
	if err != nil {
		release(ctx, res)
		return nil, err
	}
	encoded, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	res.AddMeta(exptypes.ExporterPlatformsKey, encoded)
	return res, nil
}

// choose returns what to convert, and the index if the source is one.
func (c *conversion) choose(ctx context.Context, wanted string) (chosen []part, index *ocispecs.Index, err error) {
	var ps []ocispecs.Platform
	if wanted != "" {
		if ps, err = platforms.ParseAll(strings.Split(wanted, ",")); err != nil {
			return nil, nil, fmt.Errorf("platform=%s: %w", wanted, err)
		}
		ps = unique(ps)
	}
	var first *ocispecs.Platform
	if len(ps) > 0 {
		first = &ps[0]
	}
	found, err := c.resolve(ctx, c.source, first)
	if err != nil && first == nil {
		// That this builder has no part in the index, or that its first manifest without a
		// platform is no image, says nothing about the others.
		if found = c.mismatched(ctx, err); found != nil {
			err = nil
		}
	}
	if err != nil {
		return nil, nil, err
	}
	c.source = found.ref // a tag may move
	if images.IsIndexType(found.root.MediaType) {
		index = &ocispecs.Index{}
		if err := c.read(ctx, found.root, index); err != nil {
			return nil, nil, err
		}
	}
	if first == nil && index != nil {
		chosen, err = c.partsOf(ctx, index)
		return chosen, index, err
	}
	if first == nil {
		ps = []ocispecs.Platform{found.config.Platform}
	}
	for _, p := range ps {
		chosen = append(chosen, part{platform: p, ref: c.source})
	}
	return chosen, index, nil
}

// unique returns platforms without those that mean the same as one before.
func unique(ps []ocispecs.Platform) (once []ocispecs.Platform) {
	for _, p := range ps {
		if !slices.ContainsFunc(once, func(o ocispecs.Platform) bool { return idOf(o) == idOf(p) }) {
			once = append(once, p)
		}
	}
	return once
}

// idOf returns a platform's name, the same for linux/arm64 and linux/arm64/v8.
func idOf(p ocispecs.Platform) string { return platforms.FormatAll(platforms.Normalize(p)) }

// A resolved image is that of a platform, with what it is found by.
type resolved struct {
	ref    string              // with the digest of root
	root   ocispecs.Descriptor // an index, or a manifest
	raw    []byte              // the config
	config ocispecs.Image      // what raw says
}

// resolve asks for the image of a platform, nil for that of this builder.
func (c *conversion) resolve(ctx context.Context, ref string, p *ocispecs.Platform) (*resolved, error) {
	opt := sourceresolver.Opt{
		LogName:  fmt.Sprintf("[internal] load config of %s", ref),
		ImageOpt: &sourceresolver.ResolveImageOpt{Platform: p, ResolveMode: c.mode},
	}
	if p != nil {
		opt.LogName += " for " + platforms.Format(*p)
	}
	const scheme = srctypes.DockerImageScheme + "://"
	answer, err := c.bridge.ResolveSourceMetadata(ctx, &pb.SourceOp{Identifier: scheme + ref}, opt)
	if err != nil {
		return nil, explained(err, p)
	}
	var isImage bool
	ref, isImage = strings.CutPrefix(answer.Op.GetIdentifier(), scheme) // a source policy may have changed it
	if !isImage || answer.Image == nil {
		return nil, fmt.Errorf("%s is not an image of a registry", answer.Op.GetIdentifier())
	}
	r := &resolved{raw: answer.Image.Config}
	if r.ref, err = pinned(ref, answer.Image.Digest); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(r.raw, &r.config); err != nil {
		return nil, fmt.Errorf("config of %s: %w", ref, err)
	}
	if r.root, err = c.descriptor(ctx, answer.Image.Digest); err != nil {
		return nil, err
	}
	return r, nil
}

// explained adds to BuildKit's error about an index without a platform what to do. It
// has no type of its own.
func explained(err error, p *ocispecs.Platform) error {
	if !strings.Contains(err.Error(), "no match for platform") {
		return err
	}
	lacking := "this builder's platform"
	if p != nil {
		lacking = platforms.FormatAll(*p)
	}
	return fmt.Errorf("%w: the image has nothing for %s; choose what it has with --platform", err, lacking)
}

func pinned(ref string, d digest.Digest) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", err
	}
	named, err = reference.WithDigest(named, d)
	if err != nil {
		return "", err
	}
	return named.String(), nil
}

// descriptor describes an index or a manifest. Its media type may be left out in
// OCI's.
func (c *conversion) descriptor(ctx context.Context, d digest.Digest) (ocispecs.Descriptor, error) {
	desc := ocispecs.Descriptor{Digest: d}
	var either struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	if err := c.read(ctx, desc, &either); err != nil {
		return desc, err
	}
	switch {
	case either.MediaType != "":
		desc.MediaType = either.MediaType
	case either.Manifests != nil:
		desc.MediaType = ocispecs.MediaTypeImageIndex
	default:
		desc.MediaType = ocispecs.MediaTypeImageManifest
	}
	return desc, nil
}

func (c *conversion) read(ctx context.Context, desc ocispecs.Descriptor, v any) error {
	raw, err := content.ReadBlob(ctx, c.content, desc)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	return nil
}

// A converted image is that of one platform.
type converted struct {
	platform    ocispecs.Platform
	ref         solver.ResultProxy // nil for an image without layers
	config      []byte
	annotations map[string]string // of the manifest
	inIndex     map[string]string // annotations that the index has for the manifest
}

// image returns one of the source's images.
func (c *conversion) image(ctx context.Context, of part) (*converted, error) {
	p := of.platform
	found, err := c.resolve(ctx, of.ref, &p)
	if err != nil {
		return nil, err
	}
	only := platforms.Only(p)
	one := &converted{platform: platforms.Normalize(p), inIndex: of.inIndex}
	is := found.config.Platform
	if images.IsIndexType(found.root.MediaType) {
		var index ocispecs.Index
		if err := c.read(ctx, found.root, &index); err != nil {
			return nil, err
		}
		// The platform in the index counts: configs may lack the variant.
		if m := taken(&index, only); m != nil {
			one.inIndex = m.Annotations
			if m.Platform != nil {
				is = *m.Platform
			}
		}
	}
	// BuildKit takes images of compatible platforms too. The result would have a name
	// that its programs do not fit.
	if !samePlatform(is, p) {
		return nil, fmt.Errorf("%s is for %s, not for %s: choose what it has with --platform", of.ref, platforms.Format(is), platforms.Format(p))
	}
	manifest, err := images.Manifest(ctx, c.content, found.root, only)
	if err != nil {
		return nil, err
	}
	// Without any diffIDs it would pass for an image without layers.
	if ids := len(found.config.RootFS.DiffIDs); ids != len(manifest.Layers) {
		return nil, fmt.Errorf("%s for %s: the number of diffIDs in the config (rootfs.diff_ids, %d) is not that of layers in the manifest (%d)", found.ref, platforms.Format(p), ids, len(manifest.Layers))
	}
	one.annotations = manifest.Annotations
	if one.config, err = found.withHistory(); err != nil {
		return nil, err
	}
	one.ref, err = c.files(ctx, found, p)
	return one, err
}

// taken returns the manifest of an index that BuildKit takes for a platform: the best
// of those that name one, or else the first that names none.
func taken(index *ocispecs.Index, only platforms.MatchComparer) (best *ocispecs.Descriptor) {
	var unnamed *ocispecs.Descriptor
	for i, m := range index.Manifests {
		switch {
		case m.Platform == nil:
			if unnamed == nil {
				unnamed = &index.Manifests[i]
			}
		case only.Match(*m.Platform) && (best == nil || only.Less(*m.Platform, *best.Platform)):
			best = &index.Manifests[i]
		}
	}
	if best == nil {
		return unnamed
	}
	return best
}

// samePlatform compares what programs need of platforms.
func samePlatform(a, b ocispecs.Platform) bool {
	a, b = platforms.Normalize(a), platforms.Normalize(b)
	return a.OS == b.OS && a.Architecture == b.Architecture && a.Variant == b.Variant
}

// withHistory returns the config with an entry and a time for each layer. What the
// history lacks of them BuildKit's exporter would add, with the time of the pull, so
// that each conversion would be another image.
func (r *resolved) withHistory() ([]byte, error) {
	created := time.Unix(0, 0).UTC()
	if r.config.Created != nil {
		created = *r.config.Created
	}
	history, layers, complete := slices.Clone(r.config.History), 0, true
	for i, h := range history {
		if !h.EmptyLayer {
			layers++
		}
		if h.Created == nil {
			history[i].Created, complete = &created, false
		}
	}
	for ; layers < len(r.config.RootFS.DiffIDs); layers++ {
		history, complete = append(history, ocispecs.History{Created: &created}), false
	}
	if complete {
		return r.raw, nil
	}
	var config map[string]json.RawMessage
	if err := json.Unmarshal(r.raw, &config); err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(history)
	if err != nil {
		return nil, err
	}
	config["history"] = encoded
	return json.Marshal(config)
}

// files returns the root filesystem, nil for an image without layers.
func (c *conversion) files(ctx context.Context, found *resolved, p ocispecs.Platform) (solver.ResultProxy, error) {
	if len(found.config.RootFS.DiffIDs) == 0 {
		return nil, nil
	}
	options := []llb.ImageOption{
		llb.Platform(p),
		llb.WithCustomName(fmt.Sprintf("[convert %s] %s", platforms.Format(p), found.ref)),
	}
	for _, mode := range []llb.ResolveMode{llb.ResolveModeForcePull, llb.ResolveModePreferLocal} {
		if mode.String() == c.mode {
			options = append(options, mode)
		}
	}
	if c.noCache {
		options = append(options, llb.IgnoreCache) // the workload follows it
	}
	def, err := llb.Image(found.ref, options...).Marshal(ctx, llb.Platform(p))
	if err != nil {
		return nil, err
	}
	res, err := c.bridge.Solve(ctx, frontend.SolveRequest{Definition: def.ToPB(), CacheImports: c.imports}, c.sid)
	if err != nil {
		return nil, err
	}
	return res.SingleRef()
}

// addTo adds the image to a result, of one image or of many.
func (one *converted) addTo(res *frontend.Result, id string, many bool) {
	var p *ocispecs.Platform // nil is for the only one
	suffix := ""
	if many {
		p, suffix = &one.platform, "/"+id
		res.AddRef(id, one.ref)
		for k, v := range one.inIndex {
			res.AddMeta(exptypes.AnnotationManifestDescriptorKey(p, k), []byte(v))
		}
	} else {
		res.SetRef(one.ref)
	}
	for k, v := range one.annotations {
		res.AddMeta(exptypes.AnnotationManifestKey(p, k), []byte(v))
	}
	res.AddMeta(exptypes.ExporterImageConfigKey+suffix, one.config)
	res.AddMeta(exptypes.ExporterImageBaseConfigKey+suffix, one.config)
}
