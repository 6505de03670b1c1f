package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/pkg/sys"
	"github.com/coreos/go-systemd/v22/activation"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/bklog"
)

// owner is whom a unix socket belongs to.
type owner struct{ uid, gid int }

// self is the user that the daemon runs as.
func self() owner { return owner{uid: os.Getuid(), gid: os.Getgid()} }

// listenAll opens all addresses of the API, or none.
func listenAll(cfg config.GRPCConfig) (listeners []net.Listener, err error) {
	tlsConfig, err := serverTLS(cfg.TLS)
	if err != nil {
		return nil, err
	}
	who := self()
	if cfg.UID != nil {
		who.uid = *cfg.UID
	}
	if cfg.GID != nil {
		who.gid = *cfg.GID
	}
	for _, address := range cfg.Address {
		l, err := listen(address, who, tlsConfig)
		if err != nil {
			closeAll(listeners)
			return nil, fmt.Errorf("grpc.address (--addr): %w", err)
		}
		warnAboutTLS(address, tlsConfig)
		listeners = append(listeners, l)
	}
	return listeners, nil
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

func warnAboutTLS(address string, tlsConfig *tls.Config) {
	switch {
	case strings.HasPrefix(address, "unix://") && tlsConfig != nil:
		bklog.L.Warnf("TLS is disabled for %s", address)
	case strings.HasPrefix(address, "tcp://") && tlsConfig == nil:
		bklog.L.Warnf("TLS is not enabled for %s: whoever reaches it controls this machine; mutual TLS is highly recommended", address)
	}
}

// listen opens one address. TLS is for TCP only.
func listen(address string, who owner, tlsConfig *tls.Config) (net.Listener, error) {
	scheme, rest, ok := strings.Cut(address, "://")
	if !ok {
		return nil, fmt.Errorf("%q has no scheme, did you mean %s?", address, guess(address))
	}
	switch scheme {
	case "unix":
		return sys.GetLocalListener(rest, who.uid, who.gid)
	case "tcp":
		l, err := net.Listen("tcp", rest)
		if err != nil || tlsConfig == nil {
			return l, err
		}
		return tls.NewListener(l, tlsConfig), nil
	case "fd":
		return listenFD(rest, tlsConfig)
	default:
		return nil, fmt.Errorf("%q: scheme %q is not supported, want unix://PATH, tcp://HOST:PORT or fd://", address, scheme)
	}
}

// guess completes an address without a scheme.
func guess(address string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return "tcp://" + address
	}
	return "unix://" + address
}

// listenFD takes over the first socket that the service manager passed.
func listenFD(name string, tlsConfig *tls.Config) (net.Listener, error) {
	if name != "" {
		return nil, fmt.Errorf("fd://%s: choosing among passed sockets is not supported, want fd:// for the first", name)
	}
	listeners, err := activation.TLSListeners(tlsConfig)
	if err != nil {
		return nil, fmt.Errorf("fd://: %w", err)
	}
	if len(listeners) == 0 || listeners[0] == nil {
		return nil, errors.New("fd://: no listening socket was passed: the service has to be started through systemd socket activation, and fd:// be given once")
	}
	return listeners[0], nil
}
