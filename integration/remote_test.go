package integration

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestRemoteTLS builds with buildx's remote driver over TCP, with certificates on
// both sides. Whoever has none of the authority's is refused.
func TestRemoteTLS(t *testing.T) {
	needs(t)
	keys, stranger := tempDir(t), tempDir(t)
	newAuthority(t).issue(t, keys, "server", "client")
	newAuthority(t).issue(t, stranger, "client")
	in := func(dir, name string) string { return filepath.Join(dir, name) }

	port, err := freePort()
	require.NoError(t, err)
	address := fmt.Sprintf("tcp://127.0.0.1:%d", port)
	d := startDaemon(t, ours, "--addr", address,
		"--tlscacert", in(keys, "ca.pem"), "--tlscert", in(keys, "server.pem"), "--tlskey", in(keys, "server-key.pem"))
	workers := func(flags ...string) error {
		_, err := output(t, exec.Command(bin.Path("buildctl"), append(append([]string{"--addr", address}, flags...), "debug", "workers")...))
		return err
	}
	trusting := []string{"--tlscacert", in(keys, "ca.pem")}
	as := func(dir string) []string {
		return append(trusting, "--tlscert", in(dir, "client.pem"), "--tlskey", in(dir, "client-key.pem"))
	}
	require.NoError(t, workers(as(keys)...))
	// With TLS 1.3 a client may have sent more than its handshake when it is refused,
	// and learn no more than that the connection has ended.
	require.ErrorContains(t, workers(), "Unavailable")
	require.ErrorContains(t, workers(trusting...), "Unavailable")
	require.ErrorContains(t, workers(as(stranger)...), "Unavailable")
	require.ErrorContains(t, workers(append(as(keys), "--tlsservername", "other.example")...), "other.example")

	image := repository(t) + ":latest"
	d.buildx(t, "create", "--name", "remote", "--driver", "remote", "--driver-opt",
		fmt.Sprintf("cacert=%s,cert=%s,key=%s", in(keys, "ca.pem"), in(keys, "client.pem"), in(keys, "client-key.pem")), address)
	d.build(t, helloImage(t), "--builder", "remote", "--output", estargz(image))
	require.Len(t, requireEStargz(t, image), 4)
}

// An authority signs certificates for loopback addresses.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	a := &authority{key: key, certificate: &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}}
	a.certificate, err = x509.ParseCertificate(a.sign(t, a.certificate, key.Public()))
	require.NoError(t, err)
	return a
}

func (a *authority) sign(t *testing.T, certificate *x509.Certificate, key crypto.PublicKey) (der []byte) {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, certificate, a.certificate, key, a.key)
	require.NoError(t, err)
	return der
}

// issue writes ca.pem, and NAME.pem and NAME-key.pem of each name, to a directory.
func (a *authority) issue(t *testing.T, dir string, names ...string) {
	t.Helper()
	write := func(name, kind string, der []byte) {
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	write("ca.pem", "CERTIFICATE", a.certificate.Raw)
	for i, name := range names {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		encoded, err := x509.MarshalPKCS8PrivateKey(key)
		require.NoError(t, err)
		write(name+"-key.pem", "PRIVATE KEY", encoded)
		write(name+".pem", "CERTIFICATE", a.sign(t, &x509.Certificate{
			SerialNumber: big.NewInt(int64(2 + i)),
			IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
			NotAfter:     time.Now().Add(time.Hour),
			ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}, key.Public()))
	}
}
