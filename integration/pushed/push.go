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
	manifest := ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: mediaType, Layers: []ocispecs.Descriptor{}}
	config.RootFS = ocispecs.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}
	for _, layer := range layers {
		desc := layer.Descriptor
		pushed, err := PushBlob(ctx, ref, desc.MediaType, layer.Bytes)
		if err != nil {
			return err
		}
		desc.Digest, desc.Size = pushed.Digest, pushed.Size
		manifest.Layers = append(manifest.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, layer.DiffID)
		config.History = append(config.History, ocispecs.History{CreatedBy: "a layer"})
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	configType := ocispecs.MediaTypeImageConfig
	if mediaType != ocispecs.MediaTypeImageManifest {
		configType = "application/vnd.docker.container.image.v1+json"
	}
	if manifest.Config, err = PushBlob(ctx, ref, configType, raw); err != nil {
		return err
	}
	_, err = PushManifest(ctx, ref, mediaType, manifest)
	return err
}

// PushBlob pushes a blob into the repository of ref and describes it.
func PushBlob(ctx context.Context, ref, mediaType string, blob []byte) (ocispecs.Descriptor, error) {
	desc := ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	r, _, err := parse(ref)
	if err != nil {
		return desc, err
	}
	var location string
	if err := r.send(ctx, http.MethodPost, fmt.Sprintf("http://%s/v2/%s/blobs/uploads/", r.host, r.name), "", nil, &location); err != nil {
		return desc, err
	}
	to, err := url.Parse(location)
	if err != nil {
		return desc, err
	}
	query := to.Query()
	query.Set("digest", desc.Digest.String())
	to.RawQuery = query.Encode()
	return desc, r.send(ctx, http.MethodPut, to.String(), "application/octet-stream", blob, nil)
}

// PushManifest pushes a manifest, or an index, as ref and describes it.
func PushManifest(ctx context.Context, ref, mediaType string, manifest any) (ocispecs.Descriptor, error) {
	raw, err := json.Marshal(manifest)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	desc := ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	r, tag, err := parse(ref)
	if err != nil {
		return desc, err
	}
	return desc, r.send(ctx, http.MethodPut, fmt.Sprintf("http://%s/v2/%s/manifests/%s", r.host, r.name, tag), mediaType, raw, nil)
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
