package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/pushed"
)

// A layer is what its TOC says about the files in front of the landmark.
type layer struct {
	digest       digest.Digest
	prioritized  map[string]int64 // the size of each regular file
	landmark     int64            // bytes of the blob in front of it
	uncompressed int64            // of the prioritized files
	sizes        map[string]int64 // of all regular files
}

// readLayers reads an image's layers back from the registry.
func readLayers(ctx context.Context, name string) ([]layer, error) {
	ref, err := pushed.Resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(ref.Images) != 1 {
		return nil, fmt.Errorf("%s has %d images", name, len(ref.Images))
	}
	var layers []layer
	for i, desc := range ref.Images[0].Manifest.Layers {
		blob, err := ref.Images[0].Blob(ctx, desc)
		if err != nil {
			return nil, err
		}
		l, err := readLayer(blob)
		if err != nil {
			return nil, fmt.Errorf("%s, layer %d: %w", name, i, err)
		}
		l.digest = desc.Digest
		layers = append(layers, l)
	}
	return layers, nil
}

func readLayer(blob []byte) (layer, error) {
	sr := io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob)))
	at, footer, err := estargz.OpenFooter(sr)
	if err != nil {
		return layer{}, err
	}
	toc, _, err := new(estargz.GzipDecompressor).ParseTOC(io.NewSectionReader(sr, at, sr.Size()-at-footer))
	if err != nil {
		return layer{}, err
	}
	l := layer{prioritized: map[string]int64{}, sizes: map[string]int64{}}
	marked := false
	for _, e := range toc.Entries {
		switch {
		case e.Name == estargz.PrefetchLandmark || e.Name == estargz.NoPrefetchLandmark:
			marked = true
			if e.Name == estargz.PrefetchLandmark {
				l.landmark = e.Offset
			}
		case e.Type == "reg":
			l.sizes[e.Name] = e.Size
			if !marked {
				l.prioritized[e.Name] = e.Size
				l.uncompressed += e.Size
			}
		}
	}
	if !marked {
		return layer{}, errors.New("no landmark")
	}
	return l, nil
}

// A record is a file that the optimizer saw accessed.
type record struct {
	Path  string `json:"path"`
	Layer int    `json:"layerIndex"`
}

func readRecord(name string) (all []record, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	seen := map[record]bool{}
	for dec := json.NewDecoder(f); ; {
		var r record
		if err := dec.Decode(&r); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if !seen[r] {
			seen[r] = true
			all = append(all, r)
		}
	}
}

// missing are the recorded files that our side does not prioritize.
func (s *subject) missing() (files []string) {
	for _, r := range s.recorded {
		l := s.ours.layers[r.Layer]
		if _, ok := l.prioritized[r.Path]; !ok {
			files = append(files, fmt.Sprintf("layer %d %s, %d bytes", r.Layer, r.Path, l.sizes[r.Path]))
		}
	}
	return files
}

// extra are files that our side alone prioritizes.
func (s *subject) extra() (files []string) {
	for i, l := range s.ours.layers {
		for name, size := range l.prioritized {
			if _, ok := s.theirs.layers[i].prioritized[name]; !ok {
				files = append(files, fmt.Sprintf("layer %d %s, %d bytes", i, name, size))
			}
		}
	}
	return files
}

func (s *side) files() (n int) {
	for _, l := range s.layers {
		n += len(l.prioritized)
	}
	return n
}

// prioritized is in bytes, as they are fetched and as they are read.
func (s *side) prioritized() (compressed, uncompressed int64) {
	for _, l := range s.layers {
		compressed += l.landmark
		uncompressed += l.uncompressed
	}
	return compressed, uncompressed
}
