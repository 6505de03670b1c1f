package blob

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/util/resolver"
	"github.com/stretchr/testify/require"
)

func wantClientCertificate() *tls.Config { return &tls.Config{ClientAuth: tls.RequireAnyClientCert} }

// A tokens server hands out tokens, of which only the last one counts.
type tokens struct {
	*httptest.Server
	mu     sync.Mutex
	issued int
	valid  int
	scopes []string
	silent bool // of why a token is refused
}

func serveTokens(t testing.TB) *tokens {
	s := &tokens{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.issued++
		s.valid = s.issued
		s.scopes = append(s.scopes, r.FormValue("scope"))
		fmt.Fprintf(w, `{"token": "token-%d", "expires_in": 3600}`, s.issued)
	}))
	t.Cleanup(s.Close)
	return s
}

// revoke makes the tokens that are out there worthless before their time.
func (s *tokens) revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.valid = s.issued + 1
}

// required lets a registry want a token.
func (s *tokens) required(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	challenge := fmt.Sprintf(`Bearer realm="%s/token",service="registry"`, s.URL)
	switch r.Header.Get("Authorization") {
	case fmt.Sprintf("Bearer token-%d", s.valid):
		return false
	case "":
	default:
		if !s.silent {
			challenge += `,error="invalid_token"`
		}
	}
	return status(401, "WWW-Authenticate", challenge)(w, r)
}

// authorizers are those a blob may be read with: BuildKit's, and containerd's
// on which it is modelled.
func authorizers(t testing.TB) map[string]docker.Authorizer {
	hosts := resolver.NewRegistryConfig(nil)
	r := resolver.NewPool().GetResolver(hosts, "registry.example/library/image", resolver.ScopeType{}, nil, nil)
	fromBuildKit, err := r.HostsFunc("registry.example")
	require.NoError(t, err)
	return map[string]docker.Authorizer{
		"buildkit":   fromBuildKit[0].Authorizer,
		"containerd": docker.NewDockerAuthorizer(),
	}
}

// Tokens are fetched when asked for, and again when they stop working: between
// two ranges and in the middle of one.
func TestTokens(t *testing.T) {
	blob := contents(300_000)
	test := func(authorizer docker.Authorizer, silent bool) func(*testing.T) {
		return func(t *testing.T) {
			auth := serveTokens(t)
			auth.silent = silent
			broken := cut(blob, 100_000, func(w http.ResponseWriter, r *http.Request) {
				auth.revoke()
				truncate(w, r)
			})
			r := serve(t, blob, auth.required, after(1, first(1, broken)))
			host := r.host()
			host.Authorizer = authorizer
			b := NewLine(Options{}).Open(r.digest(), source(host))

			wantRange(t, b, blob, 0, 10)
			require.Equal(t, 1, auth.issued)
			wantRange(t, b, blob, 0, 300_000)
			require.Equal(t, 2, auth.issued)
			auth.revoke()
			wantRange(t, b, blob, 5, 10)
			require.Equal(t, 3, auth.issued)
			require.Equal(t, "repository:library/image:pull", auth.scopes[0])
			require.EqualValues(t, 1, b.line.Stats().Retries, "but for the body that broke off")
		}
	}
	for _, silent := range []bool{false, true} {
		for name, authorizer := range authorizers(t) {
			t.Run(fmt.Sprintf("%s, silent %v", name, silent), test(authorizer, silent))
		}
	}
}

// A tokenAuthorizer answers as it is told.
type tokenAuthorizer struct {
	authorize error
	add       error
}

func (a *tokenAuthorizer) Authorize(_ context.Context, r *http.Request) error {
	r.Header.Set("Authorization", "Bearer secret")
	return a.authorize
}

func (a *tokenAuthorizer) AddResponses(context.Context, []*http.Response) error { return a.add }

func TestCredentialsThatFail(t *testing.T) {
	for name, c := range map[string]struct {
		authorizer tokenAuthorizer
		temporary  bool
		says       string
	}{
		"refused":           {tokenAuthorizer{}, false, "401 Unauthorized"},
		"no such scheme":    {tokenAuthorizer{add: errdefs.ErrNotImplemented}, false, "401 Unauthorized"},
		"invalid":           {tokenAuthorizer{add: docker.ErrInvalidAuthorization}, false, "credentials: authorization failed"},
		"token denied":      {tokenAuthorizer{authorize: remoteserrors.ErrUnexpectedStatus{StatusCode: 403, Status: "403 Forbidden"}}, false, "403 Forbidden"},
		"token overloaded":  {tokenAuthorizer{authorize: remoteserrors.ErrUnexpectedStatus{StatusCode: 503, Status: "503"}}, true, "503"},
		"session gone":      {tokenAuthorizer{authorize: errors.New("no active sessions")}, false, "credentials: no active sessions"},
		"token server down": {tokenAuthorizer{authorize: errors.New("dial tcp 10.0.0.1:443: connect: connection refused")}, true, "refused"},
		"token server busy": {tokenAuthorizer{authorize: errors.New("unexpected status from GET request to https://auth.example/token: 503 Service Unavailable")}, true, "503"},
		"wrong password":    {tokenAuthorizer{authorize: errors.New("failed to fetch oauth token: unexpected status from GET request to https://auth.example/token: 401 Unauthorized")}, false, "401"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, nil, status(401, "WWW-Authenticate", `Bearer realm="x"`))
			host := r.host()
			host.Authorizer = &c.authorizer
			e := wantError(t, NewLine(impatient).Open(r.digest(), source(host)))
			require.Equal(t, c.temporary, e.Temporary())
			require.ErrorContains(t, e, c.says)
			require.Equal(t, r.name(), e.Host)
		})
	}
}

// A link is storage's link to a blob, which works for a while.
type link struct {
	registry, storage *registry
	mu                sync.Mutex
	signature         int
}

// serveLinks starts a registry that redirects to storage on another host, which
// refuses expired links with a status.
func serveLinks(t testing.TB, blob []byte, refusal int) *link {
	l := &link{}
	l.storage = serve(t, blob, func(w http.ResponseWriter, r *http.Request) bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return r.FormValue("signature") != fmt.Sprint(l.signature) && status(refusal)(w, r)
	})
	l.registry = serve(t, blob, func(w http.ResponseWriter, r *http.Request) bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return status(307, "Location", fmt.Sprintf("%s/blob?signature=%d", l.storage.URL, l.signature))(w, r)
	})
	return l
}

func (l *link) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.signature++
}

// A redirect is followed once for many ranges, renewed when it stops working,
// and gets nothing that is for the registry alone.
func TestRedirects(t *testing.T) {
	blob := contents(1000)
	for _, refusal := range []int{400, 401, 403, 404, 410} {
		t.Run(fmt.Sprint(refusal), func(t *testing.T) {
			t.Parallel()
			l := serveLinks(t, blob, refusal)
			host := l.registry.host()
			host.Authorizer = &tokenAuthorizer{}
			host.Header = http.Header{"X-Secret": {"yes"}, "Cookie": {"a=b"}}
			b := NewLine(Options{}).Open(l.registry.digest(), source(host))
			wantRange(t, b, blob, 0, 10)
			wantRange(t, b, blob, 10, 10)
			require.Len(t, l.registry.seen(), 1)
			require.Len(t, l.storage.seen(), 2)
			l.expire()
			wantRange(t, b, blob, 20, 10)
			wantRange(t, b, blob, 30, 10)
			require.Len(t, l.registry.seen(), 2)
			require.Len(t, l.storage.seen(), 5)
			require.Zero(t, b.line.Stats().Retries)

			for _, r := range l.registry.seen() {
				require.Equal(t, "Bearer secret", r.Header.Get("Authorization"))
				require.Equal(t, "yes", r.Header.Get("X-Secret"))
			}
			for _, r := range l.storage.seen() {
				require.Empty(t, r.Header.Get("Authorization"))
				require.Empty(t, r.Header.Get("X-Secret"))
				require.Empty(t, r.Header.Get("Cookie"))
				require.Empty(t, r.Referer())
				require.NotEmpty(t, r.Header.Get("Range"))
			}
		})
	}
}

// A link that expires while the body comes is renewed too.
func TestRedirectExpiresInMidBody(t *testing.T) {
	blob := contents(300_000)
	l := serveLinks(t, blob, 403)
	l.storage.troubles = append(l.storage.troubles, first(1, cut(blob, 100_000, func(w http.ResponseWriter, r *http.Request) {
		l.expire()
		truncate(w, r)
	})))
	b := l.registry.open(Options{})
	wantRange(t, b, blob, 0, 300_000)
	require.EqualValues(t, 1, b.line.Stats().Retries)
}

// Storage that has moved is found again through the registry.
func TestRedirectToAnotherStorage(t *testing.T) {
	blob := contents(1000)
	old, current := serve(t, blob), serve(t, blob)
	target := old.URL
	r := serve(t, blob, func(w http.ResponseWriter, r *http.Request) bool {
		return status(302, "Location", target+"/x")(w, r)
	})
	b := r.open(Options{})
	wantRange(t, b, blob, 0, 10)
	target = current.URL
	old.Close()
	wantRange(t, b, blob, 10, 10)
	require.Len(t, current.seen(), 1)
}

// What a failed request remembers of a redirect is not tried again.
func TestRedirectIsForgotten(t *testing.T) {
	blob := contents(1000)
	old, current := serve(t, blob), serve(t, blob)
	target := old.URL
	r := serve(t, blob, func(w http.ResponseWriter, r *http.Request) bool {
		return status(302, "Location", target+"/x")(w, r)
	})
	other := serve(t, blob, after(1, status(404)))
	b := NewLine(impatient).Open(r.digest(), source(r.host(), other.host()))
	wantRange(t, b, blob, 0, 10)
	target = current.URL
	old.Close()
	wantRange(t, b, blob, 10, 10)
	require.Len(t, other.seen(), 1)
	wantRange(t, b, blob, 20, 10)
	require.Len(t, current.seen(), 1)
}

// Nor is storage that has sent wrong bytes, but by way of the registry.
func TestCorruptStorage(t *testing.T) {
	blob := contents(1000)
	l := serveLinks(t, blob, 403)
	b := l.registry.open(impatient)
	rc, err := b.With(Wanted).Range(t.Context(), 0, 10)
	require.NoError(t, err)
	_, err = io.ReadAll(rc)
	require.NoError(t, err)
	rc.(*Stream).Corrupt()
	wantRange(t, b, blob, 0, 10)
	require.Len(t, l.registry.seen(), 2)
	require.Equal(t, "no-cache", l.storage.seen()[1].Header.Get("Cache-Control"))
}

// Within the registry, credentials go along.
func TestRedirectWithinTheRegistry(t *testing.T) {
	blob := contents(1000)
	r := serve(t, blob, func(w http.ResponseWriter, r *http.Request) bool {
		return r.URL.Path != "/elsewhere" && status(308, "Location", "/elsewhere")(w, r)
	})
	host := r.host()
	host.Authorizer = &tokenAuthorizer{}
	b := NewLine(Options{}).Open(r.digest(), source(host))
	wantRange(t, b, blob, 0, 10)
	wantRange(t, b, blob, 10, 10)
	require.Len(t, r.seen(), 3)
	for _, req := range r.seen() {
		require.Equal(t, "Bearer secret", req.Header.Get("Authorization"))
	}
}

func TestRedirectChains(t *testing.T) {
	blob := contents(1000)
	last := serve(t, blob)
	middle := serve(t, blob, status(302, "Location", last.URL+"/last"))
	r := serve(t, blob, status(307, "Location", middle.URL+"/middle"))
	b := r.open(Options{})
	wantRange(t, b, blob, 0, 10)
	wantRange(t, b, blob, 10, 10)
	require.Len(t, r.seen(), 1)
	require.Len(t, middle.seen(), 1)
	require.Len(t, last.seen(), 2)
}

func TestRedirectLoop(t *testing.T) {
	r := serve(t, nil)
	r.troubles = []trouble{status(307, "Location", r.URL+"/again")}
	e := wantError(t, r.open(Options{}))
	require.ErrorContains(t, e, "307 Temporary Redirect")
	require.False(t, e.Temporary())
	require.Len(t, r.seen(), 2*(maxHops+1))
}

func TestRedirectToAFile(t *testing.T) {
	e := wantError(t, serve(t, nil, status(307, "Location", "file:///etc/passwd")).open(impatient))
	require.ErrorContains(t, e, `redirect to a "file" address`)
}

func TestSameServer(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"https://r.example/a", "https://R.example:443/b", true},
		{"http://r.example/a", "http://r.example:80/b", true},
		{"http://r.example/a", "https://r.example/a", false},
		{"https://r.example/a", "http://r.example/a", false},
		{"https://r.example/a", "https://r.example:5000/a", false},
		{"https://r.example/a", "https://storage.r.example/a", false},
	} {
		a, _ := url.Parse(c.a)
		b, _ := url.Parse(c.b)
		require.Equal(t, c.same, sameServer(a, b), "%s %s", c.a, c.b)
	}
}
