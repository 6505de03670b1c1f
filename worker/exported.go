package worker

import (
	"context"
	"maps"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	bkcompression "github.com/moby/buildkit/util/compression"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazy"
)

// exported returns an exporter of layers whose references get these from the worker's
// GetRemotes, or one of files that is watched. BuildKit's exporters ask the references.
func (d *decorated) exported(name string, e exporter.Exporter) exporter.Exporter {
	switch name {
	case client.ExporterImage, client.ExporterOCI, client.ExporterDocker:
		return &layerExporter{Exporter: e, worker: d}
	case client.ExporterLocal, client.ExporterTar:
		return &watchedExporter{Exporter: e, layers: d.opt.layers}
	default:
		return e
	}
}

type layerExporter struct {
	exporter.Exporter
	worker *decorated
}

func (e *layerExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	i, err := e.Exporter.Resolve(ctx, id, attrs)
	if err != nil {
		return nil, err
	}
	return &layerExport{ExporterInstance: i, worker: e.worker}, nil
}

type layerExport struct {
	exporter.ExporterInstance
	worker *decorated
}

func (i *layerExport) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	src = src.Clone()
	src.Ref = i.worker.exportedRef(src.Ref)
	for key, ref := range src.Refs {
		src.Refs[key] = i.worker.exportedRef(ref)
	}
	return i.ExporterInstance.Export(ctx, src, info)
}

// Config is what the inline cache is made with, by the layers of a result that
// this worker has not loaded.
func (i *layerExport) Config() *exporter.Config {
	config := i.ExporterInstance.Config().Compression()
	config.Type = annotated{config.Type, i.worker.opt.layers}
	return exporter.NewConfigWithCompression(config)
}

type exportedRef struct {
	cache.ImmutableRef
	worker *decorated
}

func (d *decorated) exportedRef(ref cache.ImmutableRef) cache.ImmutableRef {
	if ref == nil {
		return nil // an image without layers
	}
	return &exportedRef{ref, d}
}

func (r *exportedRef) Clone() cache.ImmutableRef { return r.worker.exportedRef(r.ImmutableRef.Clone()) }

func (r *exportedRef) GetRemotes(ctx context.Context, createIfNeeded bool, cfg cacheconfig.RefConfig, all bool, s session.Group) ([]*solver.Remote, error) {
	return r.worker.GetRemotes(ctx, r.ImmutableRef, createIfNeeded, cfg, all, s)
}

// annotated tells a compression type the annotations of lazy layers, which
// BuildKit's cache has forgotten after a restart for all but the topmost
// reference. Without them an eStargz layer would be pulled to be converted.
type annotated struct {
	bkcompression.Type
	layers *lazy.Layers
}

func (a annotated) NeedsConversion(ctx context.Context, cs content.Store, desc ocispecs.Descriptor) (bool, error) {
	if origin, ok := a.layers.Origin(desc.Digest); ok {
		annotations := maps.Clone(origin.Annotations)
		maps.Copy(annotations, desc.Annotations)
		desc.Annotations = annotations
	}
	return a.Type.NeedsConversion(ctx, cs, desc)
}
