package exporter

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/moby/buildkit/cache"
	bkexporter "github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/exporter/util/epoch"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/bklog"
	bkcompression "github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/contentutil"
	"github.com/moby/buildkit/util/converter"
	"github.com/moby/buildkit/util/progress"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// rewriter does the work of rewrite-timestamp=true.
type rewriter struct {
	cs     content.Store
	config bkcompression.Config
	epoch  *epoch.Epoch // of the attribute source-date-epoch, nil without
}

// rewrite is what is to be done with the layers of one image.
type rewrite struct {
	cs     content.Store
	config bkcompression.Config
	epoch  *time.Time      // nil when none is known
	base   []digest.Digest // diffIDs of the base image's layers
}

// rewrite looks up in src what belongs to the platform p.
func (r *rewriter) rewrite(src *bkexporter.Source, p *exptypes.Platform) (*rewrite, error) {
	base, err := baseLayers(src, p)
	if err != nil {
		return nil, err
	}
	tm, err := r.epochOf(src, p)
	if err != nil {
		return nil, err
	}
	return &rewrite{cs: r.cs, config: r.config, epoch: tm, base: base}, nil
}

// baseLayers returns the diffIDs of the base image's layers.
func baseLayers(src *bkexporter.Source, p *exptypes.Platform) ([]digest.Digest, error) {
	dt := exptypes.ParseKey(src.Metadata, exptypes.ExporterImageBaseConfigKey, p)
	if len(dt) == 0 {
		return nil, nil
	}
	var base ocispecs.Image
	if err := json.Unmarshal(dt, &base); err != nil {
		return nil, fmt.Errorf("configuration of the base image: %w", err)
	}
	return base.RootFS.DiffIDs, nil
}

// epochOf prefers the exporter's attribute to what the frontend says of the
// build, and that to what it says of the platform.
func (r *rewriter) epochOf(src *bkexporter.Source, p *exptypes.Platform) (*time.Time, error) {
	if r.epoch != nil {
		return r.epoch.Value, nil
	}
	tm, err := epoch.ParseSource(src, nil)
	if err != nil || tm != nil {
		return tm, err
	}
	return epoch.ParseSource(src, p)
}

// remote returns a remote whose layers have no timestamp after the epoch. The
// layers of the base image, at the bottom of source, stay as they are.
func (r *rewrite) remote(ctx context.Context, remote, source *solver.Remote) (*solver.Remote, error) {
	if r.epoch == nil {
		bklog.G(ctx).Warnf("%s is given, but no source-date-epoch", attrRewriteTimestamp)
		return remote, nil
	}
	store := &rewritten{Store: contentutil.NewStoreWithProvider(r.cs, remote.Provider), source: remote.Provider}
	descs := slices.Clone(remote.Descriptors)

	done := progress.OneOff(ctx, fmt.Sprintf("rewriting layers with source-date-epoch %d (%s)", r.epoch.Unix(), r.epoch))
	eg, ctx := errgroup.WithContext(ctx)
	for i := r.unchanged(source); i < len(descs); i++ {
		eg.Go(func() (err error) {
			descs[i], err = r.layer(ctx, store, descs[i])
			return err
		})
	}
	if err := done(eg.Wait()); err != nil {
		return nil, err
	}
	return &solver.Remote{Descriptors: descs, Provider: store}, nil
}

// unchanged counts the layers at the bottom that are the base image's. Those
// that come from a build cache may have been made eStargz, or ordered, by the
// build that filled it, which gave them other diffIDs.
func (r *rewrite) unchanged(source *solver.Remote) int {
	for i, desc := range source.Descriptors {
		if i == len(r.base) {
			return i
		}
		_, converted := desc.Annotations[estargz.TOCDigestAnnotation]
		if !converted && desc.Annotations[labels.LabelUncompressed] != r.base[i].String() {
			return i
		}
	}
	return len(source.Descriptors)
}

// layer returns the layer that takes the place of desc. As with BuildKit's own
// compressions one that cannot be rewritten stays, and the log says so.
func (r *rewrite) layer(ctx context.Context, cs content.Store, desc ocispecs.Descriptor) (ocispecs.Descriptor, error) {
	convert, err := converter.NewWithRewriteTimestamp(ctx, cs, desc, r.config, r.epoch, nil)
	after := &desc
	if err == nil && convert != nil {
		after, err = convert(ctx, cs, desc)
	}
	if ctx.Err() != nil {
		return desc, context.Cause(ctx)
	}
	if err != nil {
		bklog.G(ctx).WithError(err).Warnf("layer %s keeps its timestamps", desc.Digest)
		return desc, nil
	}
	return *after, nil
}

// rewritten provides rewritten layers from the content store and the others
// from where they were.
type rewritten struct {
	content.Store
	source content.Provider
}

var _ cache.Unlazier = (*rewritten)(nil)

// Unlazy pulls what the source has not pulled yet.
func (p *rewritten) Unlazy(ctx context.Context) error {
	if u, ok := p.source.(cache.Unlazier); ok {
		return u.Unlazy(ctx)
	}
	return nil
}
