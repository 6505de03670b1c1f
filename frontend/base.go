package frontend

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/solver/pb"
	srctypes "github.com/moby/buildkit/source/types"
	"github.com/moby/buildkit/util/bklog"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// attachBase says which layers of a target are those of its base image. The
// Dockerfile's frontend says so itself; others, older ones and the client's own do
// not, and their targets are asked what they begin with. A base that cannot be
// asked for is ordered like the rest of the image.
func (j *job) attachBase(ctx context.Context) error {
	if j.hasBase {
		return nil
	}
	var layers []digest.Digest
	for _, op := range j.built.from.images() {
		config, err := j.configOf(ctx, op)
		if err != nil {
			bklog.G(ctx).WithError(err).Warnf("config of base image %s", op.GetSource().Identifier)
			continue
		}
		layers = append(layers, config.RootFS.DiffIDs...)
	}
	if len(layers) == 0 {
		return nil
	}
	encoded, err := json.Marshal(layers)
	if err != nil {
		return err
	}
	j.res.AddMeta(profile.BaseKey(j.ID), encoded)
	return nil
}

// configOf returns the config of an image that the target begins with.
func (j *job) configOf(ctx context.Context, op operation) (*ocispecs.Image, error) {
	platform := j.Platform.Platform
	if p := op.Platform; p != nil {
		platform = p.Spec()
	}
	from := j.origin()
	opt := sourceresolver.Opt{
		LogName:        fmt.Sprintf("[internal] load config of the base image of %s", j.ID),
		SourcePolicies: from.how.SourcePolicies,
	}
	source := op.GetSource().CloneVT()
	attrs := source.GetAttrs()
	if strings.HasPrefix(source.Identifier, srctypes.OCIScheme+"://") {
		opt.OCILayoutOpt = &sourceresolver.ResolveOCILayoutOpt{Platform: &platform, Store: sourceresolver.ResolveImageConfigOptStore{
			SessionID: attrs[pb.AttrOCILayoutSessionID], StoreID: attrs[pb.AttrOCILayoutStoreID],
		}}
	} else {
		opt.ImageOpt = &sourceresolver.ResolveImageOpt{Platform: &platform, ResolveMode: attrs[pb.AttrImageResolveMode]}
	}
	answer, err := from.bridge.ResolveSourceMetadata(ctx, source, opt)
	if err != nil {
		return nil, err
	}
	if answer.Image == nil {
		return nil, fmt.Errorf("no image")
	}
	var config ocispecs.Image
	if err := json.Unmarshal(answer.Image.Config, &config); err != nil {
		return nil, err
	}
	return &config, nil
}

// images returns the images that the head begins with, several if it is merged
// of them.
func (g *graph) images() (found []operation) {
	w := &walk{graph: g, seen: map[string]bool{}}
	w.output(g.head)
	for _, d := range w.sources {
		op := g.ops[d]
		id := op.GetSource().GetIdentifier()
		for _, scheme := range []string{srctypes.DockerImageScheme, srctypes.OCIScheme} {
			if strings.HasPrefix(id, scheme+"://") {
				found = append(found, op)
			}
		}
	}
	return found
}
