// Package pushed reads images back from a registry and checks their layers
// with the stock estargz library, so that our own code never judges itself.
// The integration tests and hack/cmd/verify use it. It speaks plain HTTP to an
// anonymous registry on loopback and to nothing else.
package pushed

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// An Image is one platform's image, or one attestation manifest, of what a
// name in the registry stands for.
type Image struct {
	Descriptor ocispecs.Descriptor
	Manifest   ocispecs.Manifest
	Config     ocispecs.Image

	repo repository
}

// A Reference is what a name in the registry stands for: an index with its
// images, or a single image.
type Reference struct {
	Digest digest.Digest
	Index  *ocispecs.Index // nil for a single image
	// Images are the runnable ones.
	Images       []*Image
	Attestations []*Image
}

// attestationType is the annotation by which BuildKit tells an attestation
// manifest from an image in an index.
const attestationType = "vnd.docker.reference.type"

// Resolve reads all that ref ("127.0.0.1:5000/name:tag" or "...@sha256:...")
// stands for.
func Resolve(ctx context.Context, ref string) (*Reference, error) {
	repo, tag, err := parse(ref)
	if err != nil {
		return nil, err
	}
	desc, raw, err := repo.manifest(ctx, tag)
	if err != nil {
		return nil, err
	}
	r := &Reference{Digest: desc.Digest}
	if !isIndex(desc.MediaType) {
		im, err := repo.image(ctx, desc, raw)
		if err != nil {
			return nil, err
		}
		r.Images = append(r.Images, im)
		return r, nil
	}
	r.Index = &ocispecs.Index{}
	if err := json.Unmarshal(raw, r.Index); err != nil {
		return nil, fmt.Errorf("index of %s: %w", ref, err)
	}
	return r, r.readChildren(ctx, repo)
}

func (r *Reference) readChildren(ctx context.Context, repo repository) error {
	for _, child := range r.Index.Manifests {
		_, raw, err := repo.manifest(ctx, child.Digest.String())
		if err != nil {
			return err
		}
		im, err := repo.image(ctx, child, raw)
		if err != nil {
			return err
		}
		if child.Annotations[attestationType] != "" {
			r.Attestations = append(r.Attestations, im)
		} else {
			r.Images = append(r.Images, im)
		}
	}
	return nil
}

// Blob reads a blob of the image and checks it against its digest.
func (im *Image) Blob(ctx context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	return im.repo.verified(ctx, "blobs/"+desc.Digest.String(), desc.Digest)
}

// A repository is one name in one registry.
type repository struct{ host, name string }

func parse(ref string) (repo repository, tag string, err error) {
	host, rest, ok := strings.Cut(ref, "/")
	if !ok {
		return repo, "", fmt.Errorf("reference %q names no registry", ref)
	}
	if name, dgst, ok := strings.Cut(rest, "@"); ok {
		return repository{host, name}, dgst, nil
	}
	name, tag, ok := strings.Cut(rest, ":")
	if !ok {
		tag = "latest"
	}
	return repository{host, name}, tag, nil
}

func (r repository) image(ctx context.Context, desc ocispecs.Descriptor, manifest []byte) (*Image, error) {
	im := &Image{Descriptor: desc, repo: r}
	if err := json.Unmarshal(manifest, &im.Manifest); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	config, err := im.Blob(ctx, im.Manifest.Config)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(config, &im.Config); err != nil {
		return nil, fmt.Errorf("config of %s: %w", desc.Digest, err)
	}
	return im, nil
}

// manifest reads a manifest or an index by tag or digest.
func (r repository) manifest(ctx context.Context, tag string) (ocispecs.Descriptor, []byte, error) {
	raw, err := r.verified(ctx, "manifests/"+tag, digest.Digest(tag))
	if err != nil {
		return ocispecs.Descriptor{}, nil, err
	}
	var head struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return ocispecs.Descriptor{}, nil, fmt.Errorf("manifest %s: %w", tag, err)
	}
	return ocispecs.Descriptor{
		MediaType: head.MediaType,
		Digest:    digest.FromBytes(raw),
		Size:      int64(len(raw)),
	}, raw, nil
}

// verified reads path below the repository. A want that is no digest, but a
// tag, is not compared.
func (r repository) verified(ctx context.Context, path string, want digest.Digest) ([]byte, error) {
	url := fmt.Sprintf("http://%s/v2/%s/%s", r.host, r.name, path)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	for _, t := range manifestTypes {
		req.Header.Add("Accept", t)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", url, res.Status)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", url, err)
	}
	if want.Validate() == nil && digest.FromBytes(body) != want {
		return nil, fmt.Errorf("GET %s: content has digest %s", url, digest.FromBytes(body))
	}
	return body, nil
}

var manifestTypes = []string{
	ocispecs.MediaTypeImageIndex,
	ocispecs.MediaTypeImageManifest,
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json",
}

func isIndex(mediaType string) bool {
	return mediaType == manifestTypes[0] || mediaType == manifestTypes[2]
}
