package exporter

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	bkexporter "github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	bkcompression "github.com/moby/buildkit/util/compression"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// ref is a reference whose layers come out in our compression.
type ref struct {
	cache.ImmutableRef
	compression bkcompression.Type
	rewrite     *rewrite // nil leaves timestamps as they are
	order       *order   // nil leaves files in their order
}

var _ cache.ImmutableRef = (*ref)(nil)

// Clone stays wrapped.
func (r *ref) Clone() cache.ImmutableRef {
	c := *r
	c.ImmutableRef = r.ImmutableRef.Clone()
	return &c
}

// GetRemotes makes the layers, or finds them when nothing is to be made:
// exporters then ask on behalf of the original layers, which they may have to
// pull, and read rewritten ones from the content store.
func (r *ref) GetRemotes(ctx context.Context, createIfNeeded bool, cfg cacheconfig.RefConfig, all bool, s session.Group) ([]*solver.Remote, error) {
	cfg.Compression.Type = r.compression
	remotes, err := r.ImmutableRef.GetRemotes(ctx, createIfNeeded, cfg, all, s)
	if err != nil || !createIfNeeded {
		return remotes, err
	}
	if r.rewrite != nil {
		source, err := r.unconverted(ctx, cfg, s)
		if err != nil {
			return nil, err
		}
		for i, remote := range remotes {
			if remotes[i], err = r.rewrite.remote(ctx, remote, source); err != nil {
				return nil, err
			}
		}
	}
	if r.order != nil {
		for i, remote := range remotes {
			if remotes[i], err = r.order.remote(ctx, remote); err != nil {
				return nil, err
			}
		}
	}
	return remotes, nil
}

// unconverted describes the layers as they were before force-compression made
// others of them.
func (r *ref) unconverted(ctx context.Context, cfg cacheconfig.RefConfig, s session.Group) (*solver.Remote, error) {
	cfg.Compression.Force = false
	remotes, err := r.ImmutableRef.GetRemotes(ctx, false, cfg, false, s)
	if err != nil {
		return nil, err
	}
	return remotes[0], nil
}

// wrap returns src with the references of its images wrapped. Those of its
// attestations are no layers.
func (i *instance) wrap(src *bkexporter.Source, r *report) (*bkexporter.Source, error) {
	ps, err := exptypes.ParsePlatforms(src.Metadata)
	if err != nil {
		return nil, err
	}
	out := src.Clone()
	if _, converts := i.attrs[attrConvert]; converts {
		dropAnnotations(out.Metadata, i.attrs)
	}
	if out.Ref, err = i.wrapRef(src, out.Ref, &ps.Platforms[0], r); err != nil {
		return nil, err
	}
	for id, one := range out.Refs {
		if out.Refs[id], err = i.wrapRef(src, one, platformOf(src, ps, id), r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (i *instance) wrapRef(src *bkexporter.Source, r cache.ImmutableRef, p *exptypes.Platform, report *report) (_ cache.ImmutableRef, err error) {
	if r == nil {
		return nil, nil // an image without layers
	}
	wrapped := &ref{ImmutableRef: r, compression: i.config.Type}
	if i.rewriter != nil {
		if wrapped.rewrite, err = i.rewriter.rewrite(src, p); err != nil {
			return nil, err
		}
	}
	wrapped.order, err = i.orderOf(src, p, report)
	return wrapped, err
}

// orderOf returns the order for the profile of a platform that this exporter has
// asked for. A profile without files orders nothing.
func (i *instance) orderOf(src *bkexporter.Source, p *exptypes.Platform, r *report) (*order, error) {
	if p == nil {
		return nil, nil
	}
	read, err := i.request.Attached(src.Metadata, p.ID)
	if err != nil || read == nil || len(read.Files) == 0 {
		return nil, err
	}
	base, err := baseLayers(src, p)
	if err != nil {
		return nil, err
	}
	if dt := src.Metadata[profile.BaseKey(p.ID)]; base == nil && len(dt) > 0 {
		if err := json.Unmarshal(dt, &base); err != nil {
			return nil, fmt.Errorf("layers of the base image: %w", err)
		}
	}
	return &order{cs: i.cs, platform: p.ID, config: i.config, profile: read, base: base, all: i.reorderAll, report: r}, nil
}

// platformOf is the platform that the reference of that key is exported for.
// A reference that is alone serves whatever platform there is.
func platformOf(src *bkexporter.Source, ps exptypes.Platforms, key string) *exptypes.Platform {
	if len(src.Refs) == 1 {
		return &ps.Platforms[0]
	}
	for i := range ps.Platforms {
		if ps.Platforms[i].ID == key {
			return &ps.Platforms[i]
		}
	}
	return nil
}
