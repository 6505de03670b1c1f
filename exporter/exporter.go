// Package exporter decorates BuildKit's exporters: it takes compression=estargz
// and the attributes that begin with "estargz-", and puts our compression type
// where BuildKit would use its own. Everything else, from manifests over
// attestations to the push, remains BuildKit's work; an export with another
// compression never passes through here. The daemon wraps each exporter with
// Wrap and each cache exporter with WrapCache.
//
// BuildKit's exporters know their compressions by a closed list, so they go on
// believing in BuildKit's eStargz. What they export are references, an
// interface, and the layers of a reference are made when they ask for its
// remotes: there a wrapped reference asks for ours.
//
// With rewrite-timestamp BuildKit converts the layers once more behind that
// point, with its own type. So the attribute is kept from it and its work done
// where the remotes are handed out.
package exporter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/client"
	bkexporter "github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/util/epoch"
	bkcompression "github.com/moby/buildkit/util/compression"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression"
	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// Wrap returns the exporter e, which BuildKit calls name, with ours added.
// Layers are rewritten into cs, the content store of the worker that e belongs
// to, and compressed on pool's budget. What a build does not say is d's to say.
func Wrap(name string, e bkexporter.Exporter, cs content.Store, pool *estargz.Pool, d Defaults) bkexporter.Exporter {
	switch name {
	case client.ExporterImage, client.ExporterOCI, client.ExporterDocker:
		return &layers{Exporter: e, cs: cs, pool: pool, defaults: d}
	default:
		return &files{Exporter: e, name: name}
	}
}

// layers is an exporter of images.
type layers struct {
	bkexporter.Exporter
	cs       content.Store
	pool     *estargz.Pool
	defaults Defaults
}

// Resolve is called before the build starts, so what is wrong with the
// attributes is said here.
func (e *layers) Resolve(ctx context.Context, id int, attrs map[string]string) (bkexporter.ExporterInstance, error) {
	if !wantsEStargz(attrs) {
		if err := refuseOwn(attrs, needsEStargz); err != nil {
			return nil, err
		}
		return e.Exporter.Resolve(ctx, id, attrs)
	}
	request, rest, err := profile.ParseRequest(attrs, e.defaults.Profile) // the frontend acts on it
	if err != nil {
		return nil, err
	}
	set, rest, err := e.defaults.parse(rest)
	if err != nil {
		return nil, err
	}
	if err := checkOCITypes(attrs); err != nil {
		return nil, err
	}
	rewrite, err := takeRewriteTimestamp(rest)
	if err != nil {
		return nil, err
	}
	stock, err := e.Exporter.Resolve(ctx, id, rest)
	if err != nil {
		return nil, err
	}
	config := stock.Config().Compression()
	config.Type = compression.New(e.pool, set.Options)
	i := &instance{ExporterInstance: stock, attrs: attrs, request: *request, cs: e.cs, config: config, reorderAll: set.reorderAll}
	if rewrite {
		i.rewriter = &rewriter{cs: e.cs, config: config}
		if i.rewriter.epoch, _, err = epoch.ParseExporterAttrs(attrs); err != nil {
			return nil, err
		}
	}
	return i, nil
}

// instance is one -o with compression=estargz.
type instance struct {
	bkexporter.ExporterInstance
	attrs      map[string]string // as the user gave them
	request    profile.Request   // in them
	cs         content.Store
	config     bkcompression.Config
	rewriter   *rewriter // nil without rewrite-timestamp
	reorderAll bool
}

// Attrs are what the build's history and provenance show.
func (i *instance) Attrs() map[string]string { return i.attrs }

// Config is what the inline cache is made with: the same layers as the image,
// or it would name blobs that nobody pushes.
func (i *instance) Config() *bkexporter.Config {
	return bkexporter.NewConfigWithCompression(i.config)
}

// Export has the stock exporter export wrapped references, and adds what became
// of the profile to its answer.
func (i *instance) Export(ctx context.Context, src *bkexporter.Source, info bkexporter.ExportBuildInfo) (map[string]string, bkexporter.FinalizeFunc, bkexporter.DescriptorReference, error) {
	r := &report{}
	wrapped, err := i.wrap(src, r)
	if err != nil {
		return nil, nil, nil, err
	}
	if i.rewriter != nil && info.InlineCache != nil {
		info.InlineCache = i.rewriter.inlineCache(src, info.InlineCache)
	}
	response, finalize, desc, err := i.ExporterInstance.Export(ctx, wrapped, info)
	if err != nil {
		return nil, nil, nil, err
	}
	return response, finalize, desc, r.answer(response)
}

// files is an exporter that writes files, not layers.
type files struct {
	bkexporter.Exporter
	name string
}

// Resolve refuses our attributes. BuildKit ignores compression here.
func (e *files) Resolve(ctx context.Context, id int, attrs map[string]string) (bkexporter.ExporterInstance, error) {
	why := fmt.Sprintf("type=%s writes no layers, only the types image, registry, oci and docker do", e.name)
	if err := refuseOwn(attrs, why); err != nil {
		return nil, err
	}
	return e.Exporter.Resolve(ctx, id, attrs)
}
