package record

import (
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
	"golang.org/x/sys/unix"
)

// files collects the files that events tell of.
type files struct {
	seen map[string]file
	// made are files that the process made, maxMade of them: those count as new
	// files, and nothing else is known of them.
	made  map[string]struct{}
	image *image
	// started is the start of the recording. What has changed since may not
	// have been in the image.
	started time.Time
	// elsewhere are the places where the root filesystem is mounted on the
	// host. Who comes that way (the runtime, before it enters the root) is not
	// the process.
	elsewhere []string

	begun    bool // a process was seen
	init     int  // the first one, the container's; 0 if it is in another pid namespace
	newest   time.Time
	overflow bool
	lost     int

	descriptors int // /proc/self/fd
	self        int
	buffer      [unix.PathMax]byte
}

type file struct {
	size    int64
	changed bool // since the start
}

func newFiles(image *image, started time.Time) (*files, error) {
	fd, err := unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &files{seen: map[string]file{}, made: map[string]struct{}{}, image: image, started: started, descriptors: fd, self: os.Getpid()}, nil
}

func (f *files) close() { unix.Close(f.descriptors) }

// add takes an event, and tells whether its file has had its event and can be
// ignored from now on.
func (f *files) add(e event) (ignore bool) {
	if e.mask&unix.FAN_Q_OVERFLOW != 0 {
		f.overflow = true
		return false
	}
	if e.pid == f.self {
		return false
	}
	var st unix.Stat_t
	if err := unix.Fstat(e.fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return err == nil
	}
	path, ok := f.path(e.fd)
	if !ok {
		return false
	}
	if !f.begun {
		f.begun, f.init = true, e.pid
	}
	f.note(path, st)
	// The names of one inode are files of their own, and which is read first
	// may be chance.
	return st.Nlink == 1
}

// maxMade bounds the files that the process made and that count as new. It can
// make any number of them, and a file that is deleted takes no disk.
const maxMade = 1 << 14

// note keeps a file that is seen for the first time. Of those that the process
// made it keeps no more than the name, so that memory is bounded by the image.
func (f *files) note(path string, st unix.Stat_t) {
	_, seen := f.seen[path]
	_, made := f.made[path]
	if seen || made {
		return
	}
	changed := f.changed(st)
	if changed && !f.image.has(path) {
		if len(f.made) < maxMade {
			f.made[path] = struct{}{}
			f.newest = time.Now()
		}
		return
	}
	f.seen[path] = file{size: st.Size, changed: changed}
	f.newest = time.Now()
}

// path returns the path of the file in the root filesystem. The kernel tells it
// up to the root of the mount namespace it was opened in, which for the process
// is that filesystem.
func (f *files) path(fd int) (string, bool) {
	n, err := unix.Readlinkat(f.descriptors, strconv.Itoa(fd), f.buffer[:])
	if err != nil || n == len(f.buffer) {
		f.lost++
		return "", false
	}
	path := string(f.buffer[:n])
	for _, dir := range f.elsewhere {
		if strings.HasPrefix(path, dir+"/") {
			return "", false
		}
	}
	return strings.TrimPrefix(path, "/"), true
}

// clockSlack covers the clock of file times, which is coarser than ours.
const clockSlack = time.Second

func (f *files) changed(st unix.Stat_t) bool {
	return time.Unix(st.Ctim.Unix()).After(f.started.Add(-clockSlack))
}

// profile returns the files that the image had, read in the root filesystem that
// is at root. Files that the process made are left out: their names may be
// random, and the same reads are to make the same profile.
func (f *files) profile(root int, touches *touches) *profile.Profile {
	p := &profile.Profile{}
	for path, seen := range f.seen {
		file := profile.File{Path: path, Size: seen.size}
		gone := strings.HasSuffix(path, deleted)
		if gone || seen.changed || seen.size >= largeFile {
			name, st, ok := f.image.seenAs(path)
			if !ok {
				continue
			}
			file.Path, file.Size = name, st.Size
			if touches.knows(st) && !written(root, file.Path, st) {
				file.Ranges = rangesOf(f.image, file.Path, st, touches)
			}
		}
		p.Files = append(p.Files, file)
	}
	return profile.Merge(p)
}

// written tells whether the root filesystem has something else at path than the
// image. The overlay copies a file to write to it, all of it at once, and reads
// are then of the copy.
func written(root int, path string, st unix.Stat_t) bool {
	now, ok := (&image{[]int{root}}).find(path)
	return !ok || now.Ctim != st.Ctim
}

func rangesOf(im *image, path string, st unix.Stat_t, touches *touches) []profile.Range {
	if touches.huge {
		fd, ok := im.open(path, unix.O_RDONLY)
		if !ok {
			return nil
		}
		defer unix.Close(fd)
		if err := touches.addHuge(fd, st); err != nil {
			return nil
		}
	}
	return touches.ranges(st)
}
