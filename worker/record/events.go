package record

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// opened is the event asked for. An execution opens too, and a file cannot be
// read or mapped without being opened; reads (FAN_ACCESS) would cost an event
// for each.
const opened = unix.FAN_OPEN

// events is a group of fanotify that watches one superblock. Its descriptors do
// not make events themselves: the kernel opens them with notifications off.
type events struct {
	fd     int
	buffer []byte
}

// An event's descriptor is the file that was opened, and belongs to whoever
// gets the event.
type event struct {
	fd   int
	pid  int
	mask uint64
}

// batch is the number of events that are read at once. Each becomes an open
// file, and a process may have few.
const batch = 128

const eventSize = int(unsafe.Sizeof(unix.FanotifyEventMetadata{}))

// unlimited makes the queue take memory instead of losing events. The kernel
// limits it otherwise to fs.fanotify.max_queued_events.
const unlimited = unix.FAN_UNLIMITED_QUEUE

// openEvents watches the superblock that dir is on.
func openEvents(dir string, queue uint) (*events, error) {
	e, err := initEvents(queue)
	if errors.Is(err, unix.EINVAL) {
		e, err = initOldEvents(queue)
	}
	if errors.Is(err, unix.EPERM) {
		return nil, errors.New("the daemon is rootless or without CAP_SYS_ADMIN, and cannot be told what a process reads")
	}
	if err != nil {
		return nil, fmt.Errorf("fanotify: %w", err)
	}
	if err := e.mark(dir); err != nil {
		e.close()
		return nil, fmt.Errorf("fanotify: mark on the root filesystem: %w", err)
	}
	return e, nil
}

// initEvents needs Linux 6.13, where an event whose file cannot be opened has the
// error in the place of the descriptor.
func initEvents(queue uint) (*events, error) { return initWith(queue|unix.FAN_REPORT_FD_ERROR, batch) }

// initOldEvents is for earlier ones, where the error is read's, unless it has
// other events to give: it then gives those, and nobody is told of the one that
// is lost. So it is asked for one at a time.
func initOldEvents(queue uint) (*events, error) { return initWith(queue, 1) }

func initWith(flags uint, atOnce int) (*events, error) {
	// Nonblocking, since what was opened may be a named pipe.
	const fileFlags = unix.O_RDONLY | unix.O_LARGEFILE | unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := unix.FanotifyInit(flags|unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_UNLIMITED_MARKS, fileFlags)
	if err != nil {
		return nil, err
	}
	return &events{fd: fd, buffer: make([]byte, atOnce*eventSize)}, nil
}

// mark adds the superblock that dir is on.
func (e *events) mark(dir string) error {
	return unix.FanotifyMark(e.fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, opened, unix.AT_FDCWD, dir)
}

func (e *events) close() { unix.Close(e.fd) }

// stop ends the events; those in the queue stay.
func (e *events) stop(dir string) {
	_ = unix.FanotifyMark(e.fd, unix.FAN_MARK_FLUSH|unix.FAN_MARK_FILESYSTEM, 0, unix.AT_FDCWD, dir)
}

// queued returns how many bytes of events wait, 0 if that cannot be told.
func (e *events) queued() int {
	n, err := unix.IoctlGetInt(e.fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// ignore makes the file of an event silent. The mark goes with the inode when
// the kernel needs the memory; the file then costs another event. An error
// costs the same.
func (e *events) ignore(fd int) {
	_ = unix.FanotifyMark(e.fd, unix.FAN_MARK_ADD|unix.FAN_MARK_IGNORE_SURV|unix.FAN_MARK_EVICTABLE, opened, fd, "")
}

// next takes up to a batch and hands each event to do. It tells whether there was
// one, and how many files could not be opened for an event.
func (e *events) next(do func(event)) (more bool, lost int, err error) {
	for range batch * eventSize / len(e.buffer) {
		some, n, err := e.read(do)
		lost += n
		if !some || err != nil {
			return more, lost, err
		}
		more = true
	}
	return more, lost, nil
}

// read is next with one read.
func (e *events) read(do func(event)) (some bool, lost int, err error) {
	if some, err := e.waiting(); !some {
		return false, 0, err
	}
	n, err := unix.Read(e.fd, e.buffer)
	switch {
	case isNoFile(err):
		return true, 0, nil
	case isLoss(err):
		return true, 1, nil
	case err != nil:
		return false, 0, fmt.Errorf("fanotify: %w", err)
	}
	for b := e.buffer[:n]; len(b) >= eventSize; {
		meta := (*unix.FanotifyEventMetadata)(unsafe.Pointer(&b[0]))
		if meta.Vers != unix.FANOTIFY_METADATA_VERSION || int(meta.Event_len) > len(b) || meta.Event_len == 0 {
			return false, lost, fmt.Errorf("fanotify: version %d of an event of %d bytes", meta.Vers, meta.Event_len)
		}
		if meta.Fd >= 0 || meta.Mask&unix.FAN_Q_OVERFLOW != 0 {
			do(event{int(meta.Fd), int(meta.Pid), meta.Mask})
		} else if !isNoFile(unix.Errno(-meta.Fd)) {
			lost++
		}
		b = b[meta.Event_len:]
	}
	return true, lost, nil
}

// waiting tells whether there is an event. EAGAIN from read does not tell: before
// Linux 6.13 it is also the error of an event whose file has a lease.
func (e *events) waiting() (bool, error) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return false, fmt.Errorf("fanotify: %w", err)
		}
		return n > 0, nil
	}
}

// isNoFile tells that opening failed because it is a named pipe without a writer,
// or a device without a driver.
func isNoFile(err error) bool {
	return errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
}

// isLoss tells that read has dropped an event whose file it could not open, and
// can go on with the next.
func isLoss(err error) bool {
	for _, of := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EACCES, unix.EPERM, unix.ENOENT, unix.ESTALE, unix.EIO, unix.EAGAIN, unix.EINTR} {
		if errors.Is(err, of) {
			return true
		}
	}
	return false
}
