package exporter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/labels"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/bklog"
	bkcompression "github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/contentutil"
	"github.com/moby/buildkit/util/progress"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression"
	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// An order puts the files that a profile lists first, in the layers of one
// image.
type order struct {
	cs       content.Store
	platform string
	config   bkcompression.Config // its type is ours
	profile  *profile.Profile
	base     []digest.Digest // diffIDs of the base image's layers
	all      bool            // estargz-reorder=all
	report   *report
}

// remote returns a remote with ordered layers. What stays as it is: layers that
// are not eStargz or that another tool wrote in a way that cannot be ordered, and those of the base image that have a landmark already or
// that nobody has pulled, unless all are wanted. To look for a landmark in a
// lazy one would mean to pull it, and a lazy base is worth more than its order.
// A landmark in a layer of this build comes from the inline cache of another
// one, which may have had another profile.
func (o *order) remote(ctx context.Context, remote *solver.Remote) (*solver.Remote, error) {
	layers, err := o.open(ctx, remote)
	if err != nil {
		return nil, err
	}
	defer closeLayers(layers)

	descs := slices.Clone(remote.Descriptors)
	parts, err := o.profile.Attribute(ctx, lookups(layers))
	if err != nil {
		return nil, err
	}
	figures := make([]layerReport, len(descs))
	done := progress.OneOff(ctx, fmt.Sprintf("ordering layers for %d files", len(o.profile.Files)))
	eg, ctx := errgroup.WithContext(ctx)
	for i, l := range layers {
		if l == nil || l.HasLandmark() && !o.all && o.ofBase(remote.Descriptors[i]) {
			continue
		}
		eg.Go(func() (err error) {
			descs[i], figures[i], err = o.layer(ctx, l, parts[i])
			return err
		})
	}
	if err := done(eg.Wait()); err != nil {
		return nil, err
	}
	if err := o.report.add(o.platform, o.profile, descs, figures); err != nil {
		return nil, err
	}
	store := &rewritten{Store: contentutil.NewStoreWithProvider(o.cs, remote.Provider), source: remote.Provider}
	return &solver.Remote{Descriptors: descs, Provider: store}, nil
}

// open opens the layers that are eStargz and local. The others are nil.
func (o *order) open(ctx context.Context, remote *solver.Remote) (layers []*compression.Layer, err error) {
	defer func() {
		if err != nil {
			closeLayers(layers)
		}
	}()
	for _, desc := range remote.Descriptors {
		if !compression.IsEStargz(desc) {
			layers = append(layers, nil)
			continue
		}
		if ok, err := o.local(ctx, remote, desc); err != nil {
			return layers, err
		} else if !ok {
			layers = append(layers, nil)
			continue
		}
		l, err := compression.OpenLayer(ctx, o.cs, desc)
		if err = stays(ctx, err); err != nil {
			return layers, err
		}
		layers = append(layers, l)
	}
	return layers, nil
}

// local says whether a layer is in the store. One that is not is pulled if it is
// to be ordered: a layer of this build, from the build cache.
func (o *order) local(ctx context.Context, remote *solver.Remote, desc ocispecs.Descriptor) (bool, error) {
	_, err := o.cs.Info(ctx, desc.Digest)
	if err == nil {
		return true, nil
	}
	if !cerrdefs.IsNotFound(err) {
		return false, fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	if !o.all && o.ofBase(desc) {
		return false, nil
	}
	ra, err := remote.Provider.ReaderAt(ctx, desc) // which pulls it
	if err != nil {
		return false, fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	return true, ra.Close()
}

// ofBase says whether a layer is one of the base image, as it was there.
func (o *order) ofBase(desc ocispecs.Descriptor) bool {
	return slices.Contains(o.base, digest.Digest(desc.Annotations[labels.LabelUncompressed]))
}

func closeLayers(layers []*compression.Layer) {
	for _, l := range layers {
		if l != nil {
			l.Close()
		}
	}
}

// lookups are the layers as attribution sees them.
func lookups(layers []*compression.Layer) []profile.Layer {
	all := make([]profile.Layer, len(layers))
	for i, l := range layers {
		all[i] = func(path string) (profile.Node, bool) {
			if l == nil {
				return profile.Node{}, false
			}
			e, ok := l.Lookup(path)
			if !ok {
				return profile.Node{}, false
			}
			return node(e), true
		}
	}
	return all
}

func node(e *estargz.Entry) profile.Node {
	switch e.Type {
	case estargz.TypeReg:
		return profile.Node{Kind: profile.Regular}
	case estargz.TypeDir:
		return profile.Node{Kind: profile.Directory}
	case estargz.TypeSymlink:
		return profile.Node{Kind: profile.Symlink, Target: e.LinkName}
	default:
		return profile.Node{Kind: profile.Other}
	}
}

// layer orders one layer by its part of the profile.
func (o *order) layer(ctx context.Context, l *compression.Layer, part *profile.Profile) (ocispecs.Descriptor, layerReport, error) {
	var r layerReport
	paths := []string{}
	for _, f := range part.Files {
		if !worthwhile(f) {
			r.OtherFiles++
			r.OtherRead += f.Touched()
			continue
		}
		paths = append(paths, f.Path)
		r.Files++
		r.Bytes += f.Size
		r.Read += f.Touched()
	}
	desc, err := o.config.Type.(compression.Type).Order(ctx, l, paths, o.config.Level)
	if errors.Is(err, compression.ErrUnorderable) {
		r = layerReport{}
	}
	return desc, r, stays(ctx, err)
}

// stays says that a layer that cannot be ordered is exported as it is. Other
// errors it returns.
func stays(ctx context.Context, err error) error {
	if !errors.Is(err, compression.ErrUnorderable) {
		return err
	}
	bklog.G(ctx).WithError(err).Warn("the layer is exported as it is")
	return progress.OneOff(ctx, fmt.Sprintf("%v; it is exported as it is", err))(nil)
}

// A node's first request for a chunk takes a round trip, in which a link of
// 400 Mbit/s and 20 ms would carry this many bytes.
const bytesPerRequest = 1 << 20

// maxUnknown is up to how many bytes a file is put first of which is not known what
// was read. It takes 1.3 s on such a link.
const maxUnknown = 64 << 20

// worthwhile says whether to put a file first, which makes stock runtimes fetch
// all of it before the container starts. That is worth as many bytes that
// nobody reads as the requests for the others would have carried.
func worthwhile(f profile.File) bool {
	if len(f.Ranges) == 0 {
		return f.Size <= maxUnknown
	}
	chunks := map[int64]struct{}{}
	for _, r := range f.Ranges {
		for at := r.Offset / estargz.DefaultChunkSize; at <= (r.Offset+r.Size-1)/estargz.DefaultChunkSize; at++ {
			chunks[at] = struct{}{}
		}
	}
	return f.Size-f.Touched() <= int64(len(chunks))*bytesPerRequest
}
