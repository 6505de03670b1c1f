package pushed

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Blob is a layer to push: its bytes and what a manifest says of them. The
// digest and the size of the descriptor are filled in by Push.
type Blob struct {
	Descriptor ocispecs.Descriptor
	Bytes      []byte
	DiffID     digest.Digest
}

// Push pushes an image of layers as they are, which need not be such as any
// builder would write. MediaType is the manifest's; the configuration's is the
// one that goes with it.
func Push(ctx context.Context, ref, mediaType string, config ocispecs.Image, layers []Blob) error {
	repo, tag, err := parse(ref)
	if err != nil {
		return err
	}
	manifest := ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType, Layers: []ocispecs.Descriptor{}}
	config.RootFS = ocispecs.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}
	for _, layer := range layers {
		desc := layer.Descriptor
		desc.Digest, desc.Size = digest.FromBytes(layer.Bytes), int64(len(layer.Bytes))
		if err := repo.pushBlob(ctx, layer.Bytes); err != nil {
			return err
		}
		manifest.Layers = append(manifest.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.DiffID)
		config.History = append(config.History, ocispecs.History{CreatedBy: "a layer"})
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := repo.pushBlob(ctx, raw); err != nil {
		return err
	}
	configType := ocispecs.MediaTypeImageConfig
	if mediaType != ocispecs.MediaTypeImageManifest {
		configType = "application/vnd.docker.container.image.v1+json"
	}
	manifest.Config = ocispecs.Descriptor{MediaType: configType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if raw, err = json.Marshal(manifest); err != nil {
		return err
	}
	return repo.send(ctx, http.MethodPut, fmt.Sprintf("http://%s/v2/%s/manifests/%s", repo.host, repo.name, tag), mediaType, raw, nil)
}

func (r repository) pushBlob(ctx context.Context, blob []byte) error {
	var location string
	if err := r.send(ctx, http.MethodPost, fmt.Sprintf("http://%s/v2/%s/blobs/uploads/", r.host, r.name), "", nil, &location); err != nil {
		return err
	}
	to, err := url.Parse(location)
	if err != nil {
		return err
	}
	query := to.Query()
	query.Set("digest", digest.FromBytes(blob).String())
	to.RawQuery = query.Encode()
	return r.send(ctx, http.MethodPut, to.String(), "application/octet-stream", blob, nil)
}

// send makes a request that must succeed. It sets location, unless that is
// nil, to the place that the answer names.
func (r repository) send(ctx context.Context, method, url, contentType string, body []byte, location *string) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1000))
		return fmt.Errorf("%s %s: %s: %s", method, url, res.Status, text)
	}
	if location != nil {
		at, err := res.Location()
		if err != nil {
			return fmt.Errorf("%s %s: %w", method, url, err)
		}
		*location = at.String()
	}
	return nil
}
