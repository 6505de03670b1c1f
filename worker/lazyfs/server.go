package lazyfs

import (
	"fmt"
	"os"
	"sync"
	"time"
)

// grace is how long whoever still uses a mount has to finish after Unmount.
const grace = time.Second

// A Server serves one mounted layer. It is safe for concurrent use.
type Server struct {
	dir     string
	conn    *conn
	served  chan struct{} // closed when no goroutine of the server is left
	unmount func() error
}

// Mount shows the layer in the directory, read-only, to everybody, with the
// permissions of its files checked by the kernel. Without the privilege to
// mount it asks fusermount3.
func Mount(dir string, layer Layer, o Options) (*Server, error) {
	device, err := mount(dir)
	if err != nil {
		return nil, fmt.Errorf("mount a layer at %s: %w", dir, err)
	}
	files := newFilesystem(layer, o)
	s := serve(dir, device, files)
	if err := files.settle(dir); err != nil {
		s.Unmount()
		return nil, fmt.Errorf("mount a layer at %s: %w", dir, err)
	}
	return s, nil
}

func serve(dir string, device *os.File, files *filesystem) *Server {
	s := &Server{dir: dir, conn: newConn(device, files), served: make(chan struct{})}
	s.unmount = sync.OnceValue(s.detach)
	s.conn.start()
	go func() {
		defer close(s.served)
		s.conn.serving.Wait()
	}()
	return s
}

// Unmount takes the mount away at once, and waits for the goroutines that serve
// it. Whoever still uses it, through an overlay or an open file, has a second
// to finish before the connection is cut; it is ENOTCONN for them afterwards.
func (s *Server) Unmount() error { return s.unmount() }

func (s *Server) detach() error {
	err := detach(s.dir)
	if err == nil {
		select {
		case <-s.served:
		case <-time.After(grace):
		}
	}
	s.conn.cut()
	<-s.served
	if err != nil {
		return fmt.Errorf("unmount the layer at %s: %w", s.dir, err)
	}
	return nil
}
