package worker

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/bklog"
	bkcompression "github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/contentutil"
	"github.com/moby/buildkit/util/converter"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// BuildKit's cache cannot convert layers that are mounted lazily: it calls such a
// layer lazy even when its blob is here, and then needs a descriptor handler, which
// tells where to pull. There is none for a converted blob. After a restart, only the
// reference that was loaded has handlers, and those below it have none. So BuildKit
// is asked for the layers as they are, and force-compression is applied here.

// GetRemotes returns the layers of a reference. BuildKit calls it for the results
// that LoadRef has loaded, and the references that are exported do.
func (d *decorated) GetRemotes(ctx context.Context, ref cache.ImmutableRef, createIfNeeded bool, cfg cacheconfig.RefConfig, all bool, s session.Group) ([]*solver.Remote, error) {
	if ref == nil {
		return nil, nil
	}
	if d.opt.layers == nil {
		return ref.GetRemotes(ctx, createIfNeeded, cfg, all, s)
	}
	call := d.exports.begin(s)
	defer call.end()
	for {
		remotes, err := d.getRemotes(ctx, ref, createIfNeeded, cfg, all, s)
		if err == nil || ctx.Err() != nil || !call.failed(d.opt.host.alive) {
			return remotes, err
		}
		bklog.G(ctx).WithError(err).Warn("the layers are asked for again: another build, which had asked for them too, has ended")
	}
}

func (d *decorated) getRemotes(ctx context.Context, ref cache.ImmutableRef, createIfNeeded bool, cfg cacheconfig.RefConfig, all bool, s session.Group) ([]*solver.Remote, error) {
	if !cfg.Compression.Force {
		return ref.GetRemotes(ctx, createIfNeeded, cfg, all, s)
	}
	cfg.Compression.Force = false
	remotes, err := ref.GetRemotes(ctx, createIfNeeded, cfg, false, s)
	if err != nil {
		return nil, err
	}
	remote, err := d.convert(ctx, ref, remotes[0], cfg.Compression)
	if err != nil {
		return nil, fmt.Errorf("layers as %s: %w", cfg.Compression.Type, err)
	}
	return []*solver.Remote{remote}, nil
}

// convert returns a remote with the layers of another one, all of them in a
// compression.
func (d *decorated) convert(ctx context.Context, ref cache.ImmutableRef, remote *solver.Remote, to bkcompression.Config) (*solver.Remote, error) {
	ctx, done, err := leaseutil.WithLease(ctx, d.LeaseManager(), leaseutil.MakeTemporary)
	if err != nil {
		return nil, err
	}
	defer done(context.WithoutCancel(ctx))
	// In the order of the descriptors.
	records := ref.LayerChain()
	defer records.Release(context.WithoutCancel(ctx))
	descs := slices.Clone(remote.Descriptors)
	provider := &convertedProvider{contentutil.NewMultiProvider(remote.Provider), remote.Provider}
	eg, ctx := errgroup.WithContext(ctx)
	for i, desc := range descs {
		eg.Go(func() (err error) {
			if descs[i], err = d.layerAs(ctx, records[i].ID(), remote.Provider, desc, to); err != nil {
				return fmt.Errorf("layer %s: %w", desc.Digest, err)
			}
			if descs[i].Digest != desc.Digest {
				provider.Add(descs[i].Digest, d.ContentStore())
			}
			return nil
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	return &solver.Remote{Descriptors: descs, Provider: provider}, nil
}

// layerAs returns the layer of a record in a compression. It pulls what has to be
// converted. BuildKit's provider does that with the handlers of the topmost
// reference and the credentials of the build.
func (d *decorated) layerAs(ctx context.Context, record string, from content.Provider, desc ocispecs.Descriptor, to bkcompression.Config) (ocispecs.Descriptor, error) {
	needs, err := to.Type.NeedsConversion(ctx, d.ContentStore(), desc)
	if err != nil || !needs {
		return desc, err
	}
	if known, ok := d.variant(ctx, desc, to.Type); ok {
		return known, nil
	}
	pulled, err := from.ReaderAt(ctx, desc)
	if err != nil {
		return desc, err
	}
	pulled.Close()
	return d.conversions.Do(ctx, fmt.Sprintf("%s %s %s", record, desc.Digest, to.Type), func(ctx context.Context) (ocispecs.Descriptor, error) {
		if known, ok := d.variant(ctx, desc, to.Type); ok {
			return known, nil
		}
		return d.newVariant(ctx, record, desc, to)
	})
}

const (
	// labelVariant begins the label by which BuildKit's cache knows that a blob
	// is the same layer in another compression. It is also a reference, so that
	// the one lives as long as the other.
	labelVariant = "containerd.io/gc.ref.content.blob-"
	// The descriptor of a blob, as BuildKit's cache keeps it in labels.
	labelMediaType  = "buildkit.io/blob/mediatype"
	labelAnnotation = "buildkit.io/blob/annotation."
)

// variant looks for a layer among its variants.
func (d *decorated) variant(ctx context.Context, desc ocispecs.Descriptor, as bkcompression.Type) (ocispecs.Descriptor, bool) {
	cs := d.ContentStore()
	info, err := cs.Info(ctx, desc.Digest)
	if err != nil {
		return desc, false
	}
	for label, value := range info.Labels {
		if !strings.HasPrefix(label, labelVariant) || value == desc.Digest.String() {
			continue
		}
		blob, err := cs.Info(ctx, digest.Digest(value))
		if err != nil || blob.Labels[labelMediaType] == "" {
			continue
		}
		known := variantOf(blob)
		if needs, err := as.NeedsConversion(ctx, cs, known); err == nil && !needs {
			return known, true
		}
	}
	return desc, false
}

func variantOf(blob content.Info) ocispecs.Descriptor {
	desc := ocispecs.Descriptor{
		Digest: blob.Digest, Size: blob.Size,
		MediaType:   blob.Labels[labelMediaType],
		Annotations: map[string]string{},
	}
	for label, value := range blob.Labels {
		if name, ok := strings.CutPrefix(label, labelAnnotation); ok {
			desc.Annotations[name] = value
		}
	}
	return desc
}

// newVariant converts a layer whose blob is here.
func (d *decorated) newVariant(ctx context.Context, record string, desc ocispecs.Descriptor, to bkcompression.Config) (ocispecs.Descriptor, error) {
	lease, ctx, err := leaseutil.NewLease(ctx, d.LeaseManager(), leaseutil.MakeTemporary)
	if err != nil {
		return desc, err
	}
	defer lease.Discard(ctx)
	convert, err := converter.New(ctx, d.ContentStore(), desc, to)
	if err != nil || convert == nil { // now that the blob is here, it turns out to need none
		return desc, err
	}
	made, err := convert(ctx, d.ContentStore(), desc)
	if err != nil {
		return desc, err
	}
	if err := d.link(ctx, record, desc.Digest, *made); err != nil {
		return desc, err
	}
	blob, err := d.ContentStore().Info(ctx, made.Digest)
	return variantOf(blob), err
}

// link makes a blob a variant of a record's blob, in the way of BuildKit's cache,
// which finds it, keeps it as long as the record, and deletes it with the record.
func (d *decorated) link(ctx context.Context, record string, from digest.Digest, made ocispecs.Descriptor) error {
	lease := leases.Lease{ID: record + "-variants"}
	if _, err := d.LeaseManager().Create(ctx, leases.WithID(lease.ID)); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	if err := d.LeaseManager().AddResource(ctx, lease, leases.Resource{ID: made.Digest.String(), Type: "content"}); err != nil {
		return err
	}
	labels := map[string]string{
		labelVariant + from.String(): from.String(),
		labelMediaType:               made.MediaType,
	}
	for name, value := range made.Annotations {
		labels[labelAnnotation+name] = value
	}
	if err := d.setLabels(ctx, made.Digest, labels); err != nil {
		return err
	}
	return d.setLabels(ctx, from, map[string]string{labelVariant + made.Digest.String(): made.Digest.String()})
}

func (d *decorated) setLabels(ctx context.Context, blob digest.Digest, labels map[string]string) error {
	var fields []string
	for name := range labels {
		fields = append(fields, "labels."+name)
	}
	_, err := d.ContentStore().Update(ctx, content.Info{Digest: blob, Labels: labels}, fields...)
	return err
}

// A convertedProvider has converted layers, and the others from where they were.
type convertedProvider struct {
	*contentutil.MultiProvider
	source content.Provider
}

var _ cache.Unlazier = (*convertedProvider)(nil)

// Unlazy pulls the layers that are not here.
func (p *convertedProvider) Unlazy(ctx context.Context) error {
	if u, ok := p.source.(cache.Unlazier); ok {
		return u.Unlazy(ctx)
	}
	return nil
}
