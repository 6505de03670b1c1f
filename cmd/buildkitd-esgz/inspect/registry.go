package inspect

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
	"github.com/docker/cli/cli/config"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/blob"
)

// A registry is the source of an image that has been pushed.
type registry struct {
	name, host, repository string

	hosts    docker.RegistryHosts
	resolver remotes.Resolver
	line     *blob.Line
	counted  *counted
}

// deadline is how long a registry may send nothing.
const deadline = 30 * time.Second

func openRegistry(name string, opts Options) (*registry, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fmt.Errorf("%q is neither an OCI layout nor the name of an image: %w", name, err)
	}
	transport := docker.DefaultHTTPTransport(nil)
	transport.ResponseHeaderTimeout = deadline
	r := &registry{
		name:       reference.TagNameOnly(named).String(),
		host:       reference.Domain(named),
		repository: reference.Path(named),
		line:       blob.NewLine(blob.Options{Deadline: deadline}),
		counted:    &counted{RoundTripper: transport},
	}
	client := &http.Client{Transport: r.counted}
	plain := docker.MatchLocalhost
	if opts.PlainHTTP {
		plain = docker.MatchAllHosts
	}
	r.hosts = docker.ConfigureDefaultRegistries(
		docker.WithClient(client),
		docker.WithPlainHTTP(plain),
		docker.WithAuthorizer(docker.NewDockerAuthorizer(
			docker.WithAuthClient(client),
			docker.WithAuthCreds(logins(opts.Warnings)))))
	r.resolver = docker.NewResolver(docker.ResolverOptions{Hosts: r.hosts})
	return r, nil
}

// logins returns the passwords of the Docker client, from its configuration or
// its credential helpers.
func logins(warnings io.Writer) func(host string) (user, secret string, err error) {
	if warnings == nil {
		warnings = io.Discard
	}
	known := config.LoadDefaultConfigFile(warnings)
	return func(host string) (string, string, error) {
		if host == "registry-1.docker.io" {
			host = "https://index.docker.io/v1/"
		}
		login, err := known.GetAuthConfig(host)
		if err != nil {
			return "", "", fmt.Errorf("credentials for %s: %w", host, err)
		}
		if login.IdentityToken != "" {
			return "", login.IdentityToken, nil
		}
		return login.Username, login.Password, nil
	}
}

func (r *registry) roots(ctx context.Context) ([]ocispecs.Descriptor, error) {
	_, desc, err := r.resolver.Resolve(ctx, r.name)
	if err != nil {
		return nil, err
	}
	return []ocispecs.Descriptor{desc}, nil
}

func (r *registry) document(ctx context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	fetcher, err := r.resolver.Fetcher(ctx, r.name)
	if err != nil {
		return nil, err
	}
	body, err := fetcher.Fetch(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", desc.Digest, err)
	}
	defer body.Close()
	return readDocument(body, desc)
}

// readDocument reads no more than the descriptor says, and one byte to find out
// that there is more.
func readDocument(r io.Reader, desc ocispecs.Descriptor) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, desc.Size+1))
	if err == nil && int64(len(text)) != desc.Size {
		err = fmt.Errorf("it has not the %d bytes that it should have", desc.Size)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", desc.Digest, err)
	}
	return text, nil
}

func (r *registry) blob(desc ocispecs.Descriptor) ranged {
	return r.line.Open(desc.Digest, blob.Source{
		Registry:   r.host,
		Repository: r.repository,
		Hosts:      func() ([]docker.RegistryHost, error) { return r.hosts(r.host) },
	}).With(blob.Wanted)
}

func (r *registry) fetched() *Fetched {
	return &Fetched{Requests: r.counted.requests.Load(), Bytes: r.counted.bytes.Load()}
}

func (r *registry) Close() error { return nil }

// counted counts the requests of a client and the bytes that come for them,
// headers aside.
type counted struct {
	http.RoundTripper
	requests, bytes atomic.Int64
}

func (c *counted) RoundTrip(r *http.Request) (*http.Response, error) {
	c.requests.Add(1)
	resp, err := c.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = &countedBody{resp.Body, &c.bytes}
	}
	return resp, err
}

type countedBody struct {
	io.ReadCloser
	bytes *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.bytes.Add(int64(n))
	return n, err
}
