package blob

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
)

// A host is a registry or mirror as the place of one blob. It makes single
// requests: that one fails is for others to deal with.
type host struct {
	key
	registry  docker.RegistryHost
	url       *url.URL
	transport *redirected
	peer      *peer
	counts    *counts
	distrust  atomic.Bool  // it has sent wrong bytes
	failed    atomic.Int64 // when it failed last, in Unix nanoseconds; zero if not
	answered  func()       // the source's, or nil
	err       error        // why there is nobody to ask, instead of all the above
}

// A key tells hosts apart.
type key struct {
	repository, host, reader string
	digest                   digest.Digest
}

func (s Source) key(host string) key { return key{s.Repository, host, s.Reader, s.Digest} }

func newHost(b *Blob, s Source, h docker.RegistryHost) *host {
	peer := b.line.peer(h.Host)
	server := measured{client(h.Client), &b.line.counts, peer}
	return &host{
		key:      s.key(h.Host),
		answered: s.Answered,
		registry: h,
		url:      blobURL(s, h, cmp.Or(s.Digest, b.digest).String()),
		peer:     peer,
		counts:   &b.line.counts,
		transport: &redirected{
			registry: authorized{server, h.Authorizer, "repository:" + s.Repository + ":pull"},
			storage:  server,
		},
	}
}

// blobURL is the blob's address at a host. A mirror is told which registry it
// stands for, as containerd does.
func blobURL(s Source, h docker.RegistryHost, digest string) *url.URL {
	u := &url.URL{Scheme: h.Scheme, Host: h.Host, Path: path.Join("/", h.Path, s.Repository, "blobs", digest)}
	itself := s.Registry == h.Host || s.Registry == "docker.io" && h.Host == "registry-1.docker.io"
	if s.Registry != "" && !itself {
		u.RawQuery = url.Values{"ns": {s.Registry}}.Encode()
	}
	return u
}

// A httpClient is a registry's client, with its certificates, that follows no
// redirects and has no limit of time: bodies are long, and watched.
type httpClient struct{ http.Client }

func client(c *http.Client) *httpClient {
	if c == nil {
		c = http.DefaultClient
	}
	own := &httpClient{*c}
	own.Timeout = 0
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return own
}

// RoundTrip leaves the address out of errors: that of storage is a secret.
func (c *httpClient) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.Do(r)
	var withURL *url.Error
	if errors.As(err, &withURL) {
		err = withURL.Err
	}
	return resp, err
}

// ours are the headers that every server gets, also those a registry redirects
// to.
var ours = []string{"Range", "Accept-Encoding", "Cache-Control"}

// get asks for a range, and goes away if nothing comes for a time.
func (h *host) get(ctx context.Context, want span, stall time.Duration) (*reply, error) {
	if h.err != nil {
		return nil, h.err
	}
	r := &http.Request{Method: http.MethodGet, URL: h.url, Host: h.url.Host, Header: h.registry.Header.Clone()}
	if r.Header == nil {
		r.Header = http.Header{}
	}
	r.Header.Set("Range", want.String())
	// Or else net/http might ask for gzip and unpack it.
	r.Header.Set("Accept-Encoding", "identity")
	if h.distrust.Load() {
		r.Header.Set("Cache-Control", "no-cache")
	}
	resp, err := watch(h.transport, r.WithContext(ctx), stall)
	if err != nil {
		return nil, err
	}
	reply, err := h.check(resp, want)
	if err != nil {
		discard(resp)
		return nil, err
	}
	return reply, nil
}

// tail asks for the last bytes. Azure's storage, for one, knows no suffix
// ranges, and what it says instead differs. One byte then tells the size.
func (h *host) tail(ctx context.Context, n int64, stall time.Duration) (*reply, error) {
	size := unknown
	if h.err == nil && !h.peer.refusesSuffix() {
		r, err := h.get(ctx, span{suffix, n}, stall)
		if err == nil && r.usable(n) {
			return r, nil
		}
		if err == nil {
			size = r.size
			r.Close()
		} else if size, err = sizeIfRefused(err); err != nil {
			return nil, err
		}
		h.peer.refusedSuffix()
	}
	if size == unknown {
		r, err := h.get(ctx, span{0, 1}, stall)
		if err != nil || r.whole {
			return r, err
		}
		size = r.size
		r.Close()
	}
	if size <= 0 {
		return nil, &fault{fmt.Sprintf("the size of the blob is %d", size)}
	}
	n = min(n, size)
	r, err := h.get(ctx, span{size - n, n}, stall)
	if err == nil && r.size == unknown {
		r.size = size
	}
	if err == nil && !r.whole && r.size != size {
		r.Close()
		return nil, &fault{fmt.Sprintf("the size of the blob is %d, then %d", size, r.size)}
	}
	return r, err
}

// usable tells whether the reply to a suffix range brings the last n bytes and
// no others. A blob that is as short may well come whole.
func (r *reply) usable(n int64) bool {
	if r.whole && r.size != unknown && r.size <= n {
		r.whole = false
	}
	return !r.whole
}

// sizeIfRefused returns the size of the blob, or that it is unknown, if the
// error says that a range was not understood; else the error.
func sizeIfRefused(err error) (int64, error) {
	var s *statusError
	if errors.As(err, &s) {
		switch s.code {
		case http.StatusBadRequest, http.StatusRequestedRangeNotSatisfiable, http.StatusNotImplemented:
			return s.size, nil
		}
	}
	return 0, err
}

// suspect is called when the host has sent wrong bytes. The next request goes
// through the registry, past caches, and over a new connection where the
// transport lets us close those it keeps.
func (h *host) suspect() {
	if h.err != nil {
		return
	}
	h.distrust.Store(true)
	h.transport.target.Store(nil)
	if h.registry.Client != nil {
		h.registry.Client.CloseIdleConnections()
	}
}
