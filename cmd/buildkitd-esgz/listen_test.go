package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/stretchr/testify/require"
)

// socketPath is short: a unix socket's path may have 104 bytes.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "esgz")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "d.sock")
}

// greet accepts one connection and says hello.
func greet(l net.Listener) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = io.WriteString(conn, "hello")
	return err
}

func requireGreeting(t *testing.T, conn net.Conn, err error) {
	t.Helper()
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	text, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "hello", string(text))
}

func TestListenUnix(t *testing.T) {
	path := socketPath(t)
	gid := os.Getgid()
	if os.Geteuid() == 0 {
		gid = 12345 // anybody else may give a socket only to a group of theirs
	}
	listeners, err := listenAll(config.GRPCConfig{Address: []string{"unix://" + path}, GID: &gid})
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o660), info.Mode().Perm())
	require.EqualValues(t, gid, info.Sys().(*syscall.Stat_t).Gid)
	require.EqualValues(t, os.Getuid(), info.Sys().(*syscall.Stat_t).Uid)

	go greet(listeners[0])
	conn, err := net.Dial("unix", path)
	requireGreeting(t, conn, err)

	closeAll(listeners)
	require.NoFileExists(t, path)
}

func TestListenTCPWithTLS(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t)
	ca.write(t, dir, "server")
	listeners, err := listenAll(config.GRPCConfig{
		Address: []string{"tcp://127.0.0.1:0"},
		TLS: config.TLSConfig{
			Cert: filepath.Join(dir, "server.crt"),
			Key:  filepath.Join(dir, "server.key"),
			CA:   filepath.Join(dir, "ca.crt"),
		},
	})
	require.NoError(t, err)
	defer closeAll(listeners)
	address := listeners[0].Addr().String()
	client := &tls.Config{RootCAs: ca.pool, ServerName: "localhost", NextProtos: []string{"h2"}}

	go greet(listeners[0])
	anonymous, err := tls.Dial("tcp", address, client)
	if err == nil { // with TLS 1.3 the refusal comes after the client's handshake
		_, err = io.ReadAll(anonymous)
		anonymous.Close()
	}
	require.ErrorContains(t, err, "certificate required")

	client.Certificates = []tls.Certificate{ca.issue(t)}
	go greet(listeners[0])
	conn, err := tls.Dial("tcp", address, client)
	requireGreeting(t, conn, err)
}

func TestListenTCPWithoutTLS(t *testing.T) {
	listeners, err := listenAll(config.GRPCConfig{Address: []string{"tcp://127.0.0.1:0"}})
	require.NoError(t, err)
	defer closeAll(listeners)
	go greet(listeners[0])
	conn, err := net.Dial("tcp", listeners[0].Addr().String())
	requireGreeting(t, conn, err)
}

// serveActivated is the role of a daemon that a service manager has started
// for its sockets.
func serveActivated(addresses []string) int {
	listeners, err := listenAll(config.GRPCConfig{Address: addresses})
	if err == nil {
		err = greet(listeners[0])
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// activate makes a command start as systemd would start it: by the protocol, the
// process that takes the sockets has the ID that is in its environment.
func activate(cmd *exec.Cmd, files ...*os.File) {
	cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	cmd.ExtraFiles = files
	cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(files)))
}

func TestListenPassedSocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	require.NoError(t, err)
	defer file.Close()

	cmd := as(t, "activated", "fd://")
	activate(cmd, file)
	require.NoError(t, cmd.Start())
	conn, err := net.Dial("tcp", l.Addr().String())
	requireGreeting(t, conn, err)
	require.NoError(t, cmd.Wait())
}

func TestListenErrors(t *testing.T) {
	for address, want := range map[string]string{
		"/run/x.sock":    `grpc.address (--addr): "/run/x.sock" has no scheme, did you mean unix:///run/x.sock?`,
		"127.0.0.1:1234": `"127.0.0.1:1234" has no scheme, did you mean tcp://127.0.0.1:1234?`,
		"npipe:////x":    `scheme "npipe" is not supported, want unix://PATH, tcp://HOST:PORT or fd://`,
		"fd://":          "fd://: no listening socket was passed",
		"fd://3":         "fd://3: choosing among passed sockets is not supported, want fd://",
		"tcp://nowhere":  "missing port in address",
	} {
		t.Run(address, func(t *testing.T) {
			_, err := listenAll(config.GRPCConfig{Address: []string{address}})
			require.ErrorContains(t, err, want)
		})
	}
}

func TestListenAllOrNone(t *testing.T) {
	path := socketPath(t)
	_, err := listenAll(config.GRPCConfig{Address: []string{"unix://" + path, "nonsense"}})
	require.Error(t, err)
	require.NoFileExists(t, path)
}

func TestTLSErrors(t *testing.T) {
	dir := t.TempDir()
	newAuthority(t).write(t, dir, "server")
	cert, key := filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	for want, cfg := range map[string]config.TLSConfig{
		"grpc.tls.ca (--tlscacert) needs grpc.tls.cert and grpc.tls.key (--tlscert, --tlskey)": {CA: cert},
		"grpc.tls.key (--tlskey) needs grpc.tls.cert (--tlscert)":                              {Key: key},
		"grpc.tls.cert (--tlscert) needs grpc.tls.key (--tlskey)":                              {Cert: cert},
		"grpc.tls.cert and grpc.tls.key (--tlscert, --tlskey): open /does/not/exist":           {Cert: "/does/not/exist", Key: key},
		"grpc.tls.ca (--tlscacert): " + key + " holds no certificate in PEM form":              {Cert: cert, Key: key, CA: key},
		"grpc.tls.ca (--tlscacert): open /does/not/exist: no such file or directory":           {Cert: cert, Key: key, CA: "/does/not/exist"},
	} {
		t.Run(want, func(t *testing.T) {
			_, err := serverTLS(cfg)
			require.ErrorContains(t, err, want)
		})
	}
	none, err := serverTLS(config.TLSConfig{})
	require.NoError(t, err)
	require.Nil(t, none)
}

// authority signs certificates for localhost.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pool        *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "authority"},
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	certificate, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	return &authority{certificate: certificate, key: key, pool: pool}
}

func (a *authority) issue(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2),
		DNSNames:     []string{"localhost"},
		NotAfter:     time.Now().Add(time.Hour),
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.certificate, key.Public(), a.key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// write puts ca.crt and a certificate with its key into dir.
func (a *authority) write(t *testing.T, dir, name string) {
	t.Helper()
	issued := a.issue(t)
	key, err := x509.MarshalPKCS8PrivateKey(issued.PrivateKey)
	require.NoError(t, err)
	for file, block := range map[string]*pem.Block{
		"ca.crt":      {Type: "CERTIFICATE", Bytes: a.certificate.Raw},
		name + ".crt": {Type: "CERTIFICATE", Bytes: issued.Certificate[0]},
		name + ".key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600))
	}
}
