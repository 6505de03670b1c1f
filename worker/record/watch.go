package record

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
	"golang.org/x/sys/unix"
)

// A watch collects what is read of a mounted root filesystem. Until begin, the
// kernel keeps the events; after stop, nothing is added.
type watch struct {
	root    int // the mounted root filesystem, opened with O_PATH
	dir     string
	events  *events
	files   *files
	image   *image
	samples *samples // nil where ranges cannot be known
	touches *touches // likewise
	huge    uint64   // hugeMappings at the start

	maxQueued int // bytes of events

	wake  int           // an eventfd; written to, it ends collect
	ended chan struct{} // closed when collect has returned
	err   error         // of collect, once ended

	// seen is closed at the first event of the process. The others below are
	// for the rules, which ask while the watch goes on.
	seen   chan struct{}
	init   atomic.Int64
	newest atomic.Int64 // of a file seen for the first time, in Unix nanoseconds
}

// openWatch marks the superblock. queue is unlimited but for tests.
func openWatch(root *rootfs, queue uint, points []tracepoint) (_ *watch, err error) {
	layers, err := root.layers()
	if err != nil {
		return nil, err
	}
	w := &watch{root: -1, dir: root.dir, wake: -1, ended: make(chan struct{}), seen: make(chan struct{}), maxQueued: maxQueued}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.root, err = unix.Open(root.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("root filesystem: %w", err)
	}
	if w.image, err = openImage(layers); err != nil {
		return nil, fmt.Errorf("layers: %w", err)
	}
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, err
	}
	if w.files, err = newFiles(w.image, time.Now()); err != nil {
		return nil, err
	}
	if w.events, err = openEvents(root.dir, queue); err != nil {
		return nil, err
	}
	w.openSamples(points)
	return w, nil
}

// openSamples begins to collect ranges, where they can be had.
func (w *watch) openSamples(points []tracepoint) {
	devices := w.image.devices()
	huge, err := hugeMappings()
	if err != nil {
		return
	}
	if w.samples, err = openSamples(points, devices); err == nil {
		w.touches, w.huge = newTouches(devices), huge
	}
}

func (w *watch) close() {
	if w.samples != nil {
		w.samples.close()
	}
	if w.events != nil {
		w.events.close()
	}
	if w.files != nil {
		w.files.close()
	}
	if w.wake >= 0 {
		unix.Close(w.wake)
	}
	if w.image != nil {
		w.image.close()
	}
	if w.root >= 0 {
		unix.Close(w.root)
	}
}

// begin starts to collect. The runtime has the root filesystem mounted by now.
func (w *watch) begin() {
	go func() {
		defer close(w.ended)
		w.err = w.collect()
	}()
}

// stop takes what was read up to now, ends the watch and tells how it went.
func (w *watch) stop() Summary {
	w.events.stop(w.dir)
	one := []byte{1, 0, 0, 0, 0, 0, 0, 0}
	for {
		if _, err := unix.Write(w.wake, one); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	<-w.ended
	if w.samples != nil {
		w.completeSamples()
	}
	s := Summary{Overflow: w.files.overflow, Lost: w.files.lost, Ranges: w.touches != nil && !w.touches.lost}
	if w.err != nil {
		s.Reason = w.err.Error()
	}
	return s
}

// completeSamples finds out what the samples do not tell.
func (w *watch) completeSamples() {
	huge, err := hugeMappings()
	w.touches.huge = huge != w.huge
	w.touches.lost = w.touches.lost || err != nil || w.samples.lost()
}

// profile returns what was read, after stop. The root filesystem has to be
// there still.
func (w *watch) profile() *profile.Profile {
	return w.files.profile(w.root, w.touches)
}

func (w *watch) collect() (err error) {
	if w.files.elsewhere, err = mountpoints(w.dir); err != nil {
		return err
	}
	waits := []unix.PollFd{{Fd: int32(w.wake), Events: unix.POLLIN}, {Fd: int32(w.events.fd), Events: unix.POLLIN}}
	if w.samples != nil {
		for _, r := range w.samples.rings {
			waits = append(waits, unix.PollFd{Fd: int32(r.fd), Events: unix.POLLIN})
		}
	}
	for {
		if _, err := unix.Poll(waits, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		last := waits[0].Revents != 0
		if err := w.drain(); err != nil || last {
			return err
		}
		if _, err := unix.Poll(waits[:1], int(pause.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// pause is how long events gather before they are looked at. To be woken for each
// of them takes longer than the rest of the work, and it is time of the processor
// that the process could have.
const pause = 2 * time.Millisecond

const (
	// maxQueued is how many bytes of events may wait, 24 each: 200,000 events.
	// Each holds a file in the kernel's memory, a deleted one as well. A process
	// that is so much faster than the daemon is watched no longer.
	maxQueued = 200_000 * 24
	// checkEvery is how many batches are taken between two looks, which take
	// the kernel as long as the queue is.
	checkEvery = 64
)

// drain takes what there is. The samples go between the batches of events:
// their rings are small.
func (w *watch) drain() error {
	more := true
	for batches := 0; more; batches++ {
		if batches%checkEvery == 0 && w.events.queued() > w.maxQueued {
			w.events.stop(w.dir)
			w.files.overflow = true
		}
		var lost int
		var err error
		if more, lost, err = w.events.next(w.take); err != nil {
			return err
		}
		w.files.lost += lost
		if w.samples != nil {
			w.samples.drain(w.touches)
		}
	}
	return nil
}

func (w *watch) take(e event) {
	if e.fd >= 0 {
		defer unix.Close(e.fd)
	}
	first := !w.files.begun
	if w.files.add(e) {
		w.events.ignore(e.fd)
	}
	if !w.files.newest.IsZero() {
		w.newest.Store(w.files.newest.UnixNano())
	}
	if first && w.files.begun {
		w.init.Store(int64(w.files.init))
		close(w.seen)
	}
}

// mountpoints returns where the filesystem that dir is on is mounted.
func mountpoints(dir string) ([]string, error) {
	mounts, err := mountsOf(dir)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, m := range mounts {
		dirs = append(dirs, m.Mountpoint)
	}
	return dirs, nil
}
