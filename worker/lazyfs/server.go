package lazyfs

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// grace is how long whoever still uses a mount has to finish after Unmount.
const grace = time.Second

// A Server serves one mounted layer. It is safe for concurrent use.
type Server struct {
	dir    string
	device uint64 // of the mount, as stat(2) tells it; 0 if Mount has failed
	conn   *conn
	served chan struct{} // closed when no goroutine of the server is left

	mu        sync.Mutex
	unmounted bool
}

// Mount shows the layer in the directory, read-only, to everybody, with the
// permissions of its files checked by the kernel. Without the privilege to
// mount it asks fusermount3. If FUSE is missing or not permitted, the error has a
// method Unmountable().
func Mount(dir string, layer Layer, o Options) (*Server, error) {
	device, err := mount(dir)
	if err != nil {
		return nil, fmt.Errorf("mount a layer at %s: %w", dir, err)
	}
	files := newFilesystem(layer, o)
	s := serve(dir, device, files)
	err = files.settle(dir)
	if err == nil {
		s.device, err = deviceOf(dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount a layer at %s: %w", dir, err), s.Unmount())
	}
	return s, nil
}

func serve(dir string, device *os.File, files *filesystem) *Server {
	s := &Server{dir: dir, conn: newConn(device, files), served: make(chan struct{})}
	s.conn.start()
	go func() {
		defer close(s.served)
		s.conn.serving.Wait()
	}()
	return s
}

// Mounted says whether the layer can be seen in its directory: nobody has taken
// the mount away, or aborted its connection.
func (s *Server) Mounted() bool {
	if s.Ended() {
		return false
	}
	// The kernel answers from memory.
	device, err := deviceOf(s.dir)
	return err == nil && device == s.device
}

// Ended says whether nobody can read the layer any more, not even who has had it
// open: its connection was aborted, or it was unmounted and nobody uses it.
func (s *Server) Ended() bool {
	select {
	case <-s.served:
		return true
	default:
		return false
	}
}

// takenAway says whether something else can be seen in the directory. fusermount3 does
// not tell whether it has found no mount.
func (s *Server) takenAway() bool {
	device, err := deviceOf(s.dir)
	return err == nil && s.device != 0 && device != s.device
}

func deviceOf(dir string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(dir, &st)
	return st.Dev, err
}

// Unmount takes the mount away at once, and waits for the goroutines that serve
// it. Whoever still uses it, through an overlay or an open file, has a second
// to finish before the connection is cut; it is ENOTCONN for them afterwards.
// One that somebody else has taken away is served as long as it is used.
func (s *Server) Unmount() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unmounted {
		return nil
	}
	err := detach(s.dir)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || err != nil && s.takenAway() {
		s.unmounted = true
		return nil
	}
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
	s.unmounted = true
	return nil
}
