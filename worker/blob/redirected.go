package blob

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
)

// redirected follows a registry's redirect to storage and remembers where it
// led: the next request goes there directly, until that fails.
type redirected struct {
	registry http.RoundTripper // with credentials
	storage  http.RoundTripper // without
	target   atomic.Pointer[url.URL]
}

// maxHops is how many redirects are followed, one after another.
const maxHops = 5

func (r *redirected) RoundTrip(req *http.Request) (*http.Response, error) {
	if target := r.target.Load(); target != nil {
		resp, err := r.follow(req, target)
		if err == nil && resp.StatusCode/100 == 2 {
			return resp, nil
		}
		r.target.CompareAndSwap(target, nil)
		if err != nil || !outdated(resp.StatusCode) {
			return resp, err
		}
		discard(resp)
	}
	return r.ask(req)
}

// outdated tells whether a remembered target answered as if it were good for
// nothing any more. Storage says 400 when the token in a link has expired, 403
// when the link has, 404 and 410 when the blob moved, 3xx when it moved just now.
func outdated(status int) bool {
	return status/100 == 3 || status/100 == 4 && !overloaded(status)
}

// ask sends the request to the registry and goes where it leads.
func (r *redirected) ask(req *http.Request) (*http.Response, error) {
	resp, err := r.registry.RoundTrip(req)
	for range maxHops {
		if err != nil {
			return nil, err
		}
		target := location(resp)
		if target == nil {
			return resp, nil
		}
		discard(resp)
		if resp, err = r.follow(req, target); err == nil && resp.StatusCode/100 == 2 {
			r.target.Store(target)
		}
	}
	return resp, err
}

// location is where an answer redirects to, or nil.
func location(resp *http.Response) *url.URL {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
		http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		if target, err := resp.Location(); err == nil {
			return target
		}
	}
	return nil
}

// follow sends the request to another address. Credentials and the headers that
// are configured for the registry are for the registry alone.
func (r *redirected) follow(req *http.Request, target *url.URL) (*http.Response, error) {
	if sameServer(req.URL, target) {
		again := req.Clone(req.Context())
		again.URL = target
		return r.registry.RoundTrip(again)
	}
	if target.Scheme != "http" && target.Scheme != "https" {
		return nil, fmt.Errorf("redirect to a %q address", target.Scheme)
	}
	bare := &http.Request{Method: req.Method, URL: target, Host: target.Host, Header: http.Header{}}
	for _, name := range ours {
		if v, ok := req.Header[name]; ok {
			bare.Header[name] = v
		}
	}
	return r.storage.RoundTrip(bare.WithContext(req.Context()))
}

func sameServer(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return map[string]string{"http": "80", "https": "443"}[u.Scheme]
}
