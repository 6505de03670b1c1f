package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// A server is a process that runs until it is stopped.
type server struct {
	cmd   *exec.Cmd
	log   bytes.Buffer // to be read when it has ended
	ended chan error
}

// startServer starts a server and waits until it is ready.
func startServer(ctx context.Context, cmd *exec.Cmd, ready func() bool) (*server, error) {
	s := &server{cmd: cmd, ended: make(chan error, 1)}
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	// Ctrl-C is for this process, which stops its servers in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A container's shim may hold its output longer.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { s.ended <- cmd.Wait() }()
	for range 300 {
		select {
		case err := <-s.ended:
			return nil, fmt.Errorf("%s ended: %w\n%s", cmd.Path, err, s.log.String())
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), s.stop())
		case <-time.After(50 * time.Millisecond):
			if ready() {
				return s, nil
			}
		}
	}
	err := s.stop()
	return nil, errors.Join(fmt.Errorf("%s does not get ready\n%s", cmd.Path, s.log.String()), err)
}

// stop asks the server to end, and kills it when it does not.
func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-s.ended: // by the signal
		return nil
	case <-time.After(30 * time.Second):
		return errors.Join(fmt.Errorf("%s did not stop", s.cmd.Path), s.cmd.Process.Kill(), <-s.ended)
	}
}

// A registry is an empty one on loopback.
type registry struct {
	*server
	address, dir string
}

func (r *registry) ref(name, tag string) string { return r.address + "/" + name + ":" + tag }

func startRegistry(ctx context.Context, c *config) (*registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	cmd := exec.Command(c.tool("docker-registry"), "serve", filepath.Join(c.repo, "internal", "harness", "registry.yml"))
	dir := filepath.Join(c.work, "registry")
	cmd.Env = append(os.Environ(), "REGISTRY_HTTP_ADDR="+address, "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY="+dir)
	s, err := startServer(ctx, cmd, func() bool {
		res, err := http.Get("http://" + address + "/v2/")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return &registry{s, address, dir}, err
}
