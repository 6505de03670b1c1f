package blob

import (
	"crypto/tls"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// What is refused for good ends at once, after a second request with fresh
// credentials.
func TestRefused(t *testing.T) {
	denied := `{"errors":[{"code":"DENIED","message":"requested access to the resource is\u0007 denied"}]}`
	for name, c := range map[string]struct {
		trouble trouble
		says    string
	}{
		"not found":    {status(404), "404 Not Found"},
		"forbidden":    {status(403), "403 Forbidden"},
		"unauthorized": {status(401, "WWW-Authenticate", `Bearer realm="x"`), "401 Unauthorized"},
		"gone":         {status(410), "410 Gone"},
		"bad request":  {status(400), "400 Bad Request"},
		"unsupported":  {status(501), "501 Not Implemented"},
		"legal":        {status(451), "451 Unavailable For Legal Reasons"},
		"no content":   {status(204), "204 No Content"},
		"nowhere":      {status(307), "307 Temporary Redirect"},
		"with its reason": {func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(403)
			w.Write([]byte(denied))
			return true
		}, "403 Forbidden: denied: requested access to the resource is denied"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, contents(10), c.trouble)
			b := r.open(impatient)
			e := wantError(t, b)
			require.False(t, e.Temporary())
			require.Equal(t, "layer "+b.digest.String()+" from "+r.name()+": "+c.says, e.Error())
			require.Len(t, r.seen(), 2)
			require.EqualValues(t, 1, b.line.Stats().Failures)
		})
	}
}

// What may come back is waited for, but not for ever.
func TestDeadline(t *testing.T) {
	const deadline = 400 * time.Millisecond
	for name, c := range map[string]struct {
		trouble trouble // none: nobody listens
		says    string
	}{
		"unavailable":  {status(503), "503 Service Unavailable"},
		"rate limit":   {status(429, "Retry-After", "3600"), "429 Too Many Requests"},
		"silent":       {func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }, "no byte came for "},
		"gone":         {nil, "connection refused"},
		"wrong answer": {partial("bytes 1-10/11", 10), "wrong answer: asked for bytes=0-9, got bytes=1-10"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := (&inProcess{serve: (&registry{troubles: []trouble{c.trouble}}).ServeHTTP}).host()
				if c.trouble == nil {
					h.Client.Transport = refusing{}
				}
				l := NewLine(Options{Deadline: deadline, Stall: 50 * time.Millisecond})
				start := time.Now()
				e := wantError(t, l.Open(someDigest, source(h)))
				require.GreaterOrEqual(t, time.Since(start), deadline)
				require.True(t, e.Temporary())
				require.Equal(t, h.Host, e.Host)
				require.ErrorContains(t, e, "gave up after 400ms: ")
				require.ErrorContains(t, e, c.says)
				require.EqualValues(t, 1, l.Stats().Failures)
			})
		})
	}
}

// refusing fails as a host does on which nobody listens.
type refusing struct{}

func (refusing) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", unix.ECONNREFUSED)}
}

// A registry that comes back within the deadline is all right.
func TestGoneForAWhile(t *testing.T) {
	blob := contents(200_000)
	r := &registry{blob: blob}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())

	host := docker.RegistryHost{Scheme: "http", Host: address, Path: "/v2", Capabilities: docker.HostCapabilityPull}
	tries := 0
	dial := (&net.Dialer{}).DialContext
	transport := &http.Transport{DialContext: dial}
	defer transport.CloseIdleConnections()
	b := NewLine(Options{}).Open(r.digest(), Source{Repository: "library/image", Hosts: func() ([]docker.RegistryHost, error) {
		if tries++; tries == 3 {
			l, err := net.Listen("tcp", address)
			if err != nil {
				return nil, err
			}
			r.Server = httptest.NewUnstartedServer(r)
			r.Listener.Close()
			r.Listener = l
			r.Start()
			t.Cleanup(r.Close)
		}
		host.Client = &http.Client{Transport: transport}
		return []docker.RegistryHost{host}, nil
	}})
	wantRange(t, b, blob, 100, 100_000)
	require.EqualValues(t, 2, b.line.Stats().Retries)
}

func TestUntrustedCertificate(t *testing.T) {
	r := &registry{blob: contents(10)}
	r.Server = httptest.NewUnstartedServer(r)
	r.Config.ErrorLog = quiet
	r.StartTLS()
	t.Cleanup(r.Close)
	host := r.host()
	host.Client = &http.Client{Transport: &http.Transport{}}
	e := wantError(t, NewLine(Options{}).Open(r.digest(), source(host)))
	require.False(t, e.Temporary())
	require.ErrorContains(t, e, "unknown authority")
	var certificate *tls.CertificateVerificationError
	require.ErrorAs(t, e, &certificate)

	wantRange(t, r.open(Options{}), r.blob, 0, 10) // with the CA that it knows
}

func TestNobodyToAsk(t *testing.T) {
	l := NewLine(Options{})
	e := wantError(t, l.Open(someDigest))
	require.Equal(t, "layer "+someDigest.String()+": no registry to ask", e.Error())
	require.False(t, e.Temporary())

	pushOnly := docker.RegistryHost{Host: "push.example", Capabilities: docker.HostCapabilityPush}
	s := source(pushOnly)
	s.Registry = "push.example"
	e = wantError(t, l.Open(someDigest, s))
	require.Equal(t, "layer "+someDigest.String()+" from push.example: library/image: no registry to ask", e.Error())
	require.False(t, e.Temporary())

	failing := Source{Hosts: func() ([]docker.RegistryHost, error) {
		return nil, &fs.PathError{Op: "open", Path: "ca.pem", Err: fs.ErrNotExist}
	}}
	e = wantError(t, l.Open(someDigest, failing))
	require.ErrorContains(t, e, "open ca.pem: file does not exist")
}

// A secret that makes storage's links work must not get into build logs.
func TestErrorsHideLinks(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	r := serve(t, nil, status(307, "Location", gone.URL+"/blob?signature=secret"))
	e := wantError(t, r.open(impatient))
	require.NotContains(t, e.Error(), "secret")
	require.ErrorContains(t, e, "connection refused")
	require.False(t, errors.Is(e, errRange))
}
