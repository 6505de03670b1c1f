package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/moby/buildkit/cmd/buildkitd/config"
)

// serverTLS returns nil if no certificate is configured.
func serverTLS(cfg config.TLSConfig) (*tls.Config, error) {
	switch {
	case cfg.Cert == "" && cfg.Key == "" && cfg.CA == "":
		return nil, nil
	case cfg.Cert == "" && cfg.Key == "":
		// buildkitd 0.33 serves everyone without TLS then.
		return nil, errors.New("grpc.tls.ca (--tlscacert) needs grpc.tls.cert and grpc.tls.key (--tlscert, --tlskey)")
	case cfg.Cert == "":
		return nil, errors.New("grpc.tls.key (--tlskey) needs grpc.tls.cert (--tlscert)")
	case cfg.Key == "":
		return nil, errors.New("grpc.tls.cert (--tlscert) needs grpc.tls.key (--tlskey)")
	}
	certificate, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("grpc.tls.cert and grpc.tls.key (--tlscert, --tlskey): %w", err)
	}
	server := &tls.Config{
		Certificates: []tls.Certificate{certificate},
		NextProtos:   []string{"h2"},
	}
	if cfg.CA != "" {
		if err := verifyClients(server, cfg.CA); err != nil {
			return nil, fmt.Errorf("grpc.tls.ca (--tlscacert): %w", err)
		}
	}
	return server, nil
}

// verifyClients lets in only clients with a certificate signed by the CA.
func verifyClients(server *tls.Config, path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	server.ClientCAs = x509.NewCertPool()
	if !server.ClientCAs.AppendCertsFromPEM(content) {
		return fmt.Errorf("%s holds no certificate in PEM form", path)
	}
	server.ClientAuth = tls.RequireAndVerifyClientCert
	return nil
}
