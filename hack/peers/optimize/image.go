package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	"github.com/containerd/stargz-snapshotter/analyzer"
	"github.com/containerd/stargz-snapshotter/estargz"
	esgzconvert "github.com/containerd/stargz-snapshotter/nativeconverter/estargz"
	"github.com/containerd/stargz-snapshotter/recorder"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An image is one in containerd, for this platform.
type image struct {
	client   *containerd.Client
	name     string
	manifest ocispec.Manifest
}

func pull(ctx context.Context, client *containerd.Client, name string) (*image, error) {
	pulled, err := client.Pull(ctx, name, containerd.WithResolver(loopback()))
	if err != nil {
		return nil, err
	}
	manifest, err := images.Manifest(ctx, client.ContentStore(), pulled.Target(), platforms.DefaultStrict())
	return &image{client, name, manifest}, err
}

func push(ctx context.Context, client *containerd.Client, name string) error {
	im, err := client.GetImage(ctx, name)
	if err != nil {
		return err
	}
	return client.Push(ctx, name, im.Target(), containerd.WithResolver(loopback()))
}

// loopback speaks plain HTTP to registries on this machine.
func loopback() remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost)),
	})
}

// analyze runs the image with its own configuration, and returns the record of
// what it accessed: a line of JSON for each file.
func (im *image) analyze(ctx context.Context, o options) ([]byte, error) {
	dgst, err := analyzer.Analyze(ctx, im.client, im.name,
		analyzer.WithPeriod(o.period), analyzer.WithWaitLineOut(o.waitOnLine))
	if err != nil {
		return nil, err
	}
	return content.ReadBlob(ctx, im.client.ContentStore(), ocispec.Descriptor{Digest: dgst})
}

// convert makes another image of eStargz layers, with the files of the record
// first.
func (im *image) convert(ctx context.Context, target string, record []byte, level int) error {
	files, err := im.byLayer(record)
	if err != nil {
		return err
	}
	prioritized := map[digest.Digest][]estargz.Option{}
	for layer, names := range files {
		prioritized[layer] = []estargz.Option{estargz.WithPrioritizedFiles(names)}
	}
	_, err = converter.Convert(ctx, im.client, target, im.name,
		converter.WithPlatform(platforms.DefaultStrict()),
		converter.WithDockerToOCI(true),
		converter.WithLayerConvertFunc(esgzconvert.LayerConvertWithLayerAndCommonOptsFunc(prioritized, estargz.WithCompressionLevel(level))))
	return err
}

// byLayer returns the files of a record in their order, each once, by the layer
// that has them.
func (im *image) byLayer(record []byte) (map[digest.Digest][]string, error) {
	files, seen := map[digest.Digest][]string{}, map[recorder.Entry]bool{}
	for dec := json.NewDecoder(bytes.NewReader(record)); ; {
		var e recorder.Entry
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return files, nil
		} else if err != nil {
			return nil, fmt.Errorf("record: %w", err)
		}
		if e.LayerIndex == nil || *e.LayerIndex >= len(im.manifest.Layers) {
			return nil, fmt.Errorf("record: %s is in no layer", e.Path)
		}
		layer := im.manifest.Layers[*e.LayerIndex].Digest
		if file := (recorder.Entry{Path: e.Path, ManifestDigest: layer.String()}); !seen[file] {
			seen[file] = true
			files[layer] = append(files[layer], e.Path)
		}
	}
}
