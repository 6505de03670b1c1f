package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/pushed"
)

// A side is one way of making an image.
type side struct {
	name, tag string
	first     map[file]int64          // the size of each regular file in front of a landmark
	landmarks map[digest.Digest]int64 // bytes of each layer's blob in front of it
}

// A file is one of an image, in one of its layers.
type file struct {
	Path  string `json:"path"`
	Layer int    `json:"layerIndex"`
}

// read reads the image back from the registry.
func (s *side) read(ctx context.Context, name string) error {
	ref, err := pushed.Resolve(ctx, name)
	if err != nil {
		return err
	}
	if len(ref.Images) != 1 {
		return fmt.Errorf("%s has %d images", name, len(ref.Images))
	}
	s.first, s.landmarks = map[file]int64{}, map[digest.Digest]int64{}
	for i, desc := range ref.Images[0].Manifest.Layers {
		blob, err := ref.Images[0].Blob(ctx, desc)
		if err != nil {
			return err
		}
		if err := s.readLayer(i, desc, blob); err != nil {
			return fmt.Errorf("%s, layer %d: %w", name, i, err)
		}
	}
	return nil
}

func (s *side) readLayer(layer int, desc ocispecs.Descriptor, blob []byte) error {
	toc, err := pushed.TOC(blob)
	if err != nil {
		return err
	}
	for _, e := range toc {
		switch {
		case e.Name == estargz.PrefetchLandmark:
			s.landmarks[desc.Digest] = e.Offset
			return nil
		case e.Name == estargz.NoPrefetchLandmark:
			return nil
		case e.Type == "reg":
			s.first[file{e.Name, layer}] = e.Size
		}
	}
	return errors.New("no landmark")
}

// without are those of the files that the side does not put first.
func (s *side) without(files map[file]int64) (all []file) {
	for f := range files {
		if _, ok := s.first[f]; !ok {
			all = append(all, f)
		}
	}
	return all
}

// readRecord returns the files that the optimizer saw accessed.
func readRecord(name string) (map[file]int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all := map[file]int64{}
	for dec := json.NewDecoder(f); ; {
		var accessed file
		if err := dec.Decode(&accessed); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all[accessed]++
	}
}
