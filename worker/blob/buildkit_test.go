package blob

import (
	"crypto/x509"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/util/resolver"
	"github.com/moby/buildkit/util/resolver/config"
	"github.com/stretchr/testify/require"
)

// What stands in buildkitd.toml is what is done: a mirror by plain HTTP and with
// a path, and a registry with a CA of its own that wants a certificate.
func TestRegistryConfiguration(t *testing.T) {
	blob := contents(1000)
	mirror := serve(t, blob, status(404))
	origin := &registry{blob: blob}
	origin.Server = httptest.NewUnstartedServer(origin)
	origin.TLS = wantClientCertificate()
	origin.StartTLS()
	t.Cleanup(origin.Close)

	plain := true
	certificate := origin.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	require.NoError(t, err)
	ca := pemFile(t, "CERTIFICATE", certificate.Certificate[0])
	hosts := resolver.NewRegistryConfig(map[string]config.RegistryConfig{
		origin.name(): {
			Mirrors:   []string{mirror.name() + "/proxy"},
			PlainHTTP: new(bool),
			RootCAs:   []string{ca},
			KeyPairs:  []config.TLSKeyPair{{Certificate: ca, Key: pemFile(t, "PRIVATE KEY", key)}},
		},
		mirror.name(): {PlainHTTP: &plain},
	})
	b := NewLine(impatient).Open(origin.digest(), Source{
		Registry: origin.name(), Repository: "library/image",
		Hosts: func() ([]docker.RegistryHost, error) { return hosts(origin.name()) },
	})
	wantRange(t, b, blob, 0, 1000)
	require.Len(t, mirror.seen(), 1)
	require.Equal(t, "/v2/proxy/library/image/blobs/"+origin.digest().String(), mirror.seen()[0].URL.Path)
	require.Equal(t, origin.name(), mirror.seen()[0].FormValue("ns"))
	require.Len(t, origin.seen(), 1)
	require.Len(t, origin.seen()[0].TLS.PeerCertificates, 1)
}

func pemFile(t *testing.T, kind string, der []byte) string {
	name := filepath.Join(t.TempDir(), "file.pem")
	require.NoError(t, os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return name
}
