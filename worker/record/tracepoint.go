package record

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A tracepoint tells of a part of a file.
type tracepoint struct {
	name string
	id   uint64
	// fields are the names of the inode's device and number, and of the first
	// page and the last. If length is set, they are an offset and a length, in
	// bytes.
	fields [4]string
	length bool
	// behind is how many pages before the first may have been touched as well.
	behind uint64

	device, number, first, last field
}

// A field is an integer in a sample.
type field struct{ offset, size int }

// batchPages is how many pages a read may have taken before those it tells of:
// the kernel takes up to 31 at a time, and where the last of them is still on
// its way from the disk it hands out the others without a word.
const batchPages = 31

func tracepoints() []tracepoint {
	return []tracepoint{
		{name: "filemap/mm_filemap_get_pages", fields: [4]string{"s_dev", "i_ino", "index", "last_index"}, behind: batchPages},
		{name: "filemap/mm_filemap_map_pages", fields: [4]string{"s_dev", "i_ino", "index", "last_index"}},
		{name: "filemap/mm_filemap_fault", fields: [4]string{"s_dev", "i_ino", "index", "index"}},
		{name: "iomap/iomap_dio_rw_begin", fields: [4]string{"dev", "ino", "pos", "count"}, length: true},
	}
}

// findTracepoints asks tracefs for the numbers and layouts, through a mount of
// its own that has no place in the file tree: it may be mounted nowhere.
func findTracepoints() ([]tracepoint, error) {
	fs, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("tracefs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("tracefs: %w", err)
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("tracefs: %w", err)
	}
	defer unix.Close(dir)
	points := tracepoints()
	return points, readTracepoints(fmt.Sprintf("/proc/self/fd/%d", dir), points)
}

// keepTracepoints finds the tracepoints and holds each open with an event that
// is never enabled: to let go of a tracepoint's last event takes the kernel some
// 40 ms, which would be added to every recorded step. It returns none where
// one is missing. They stay open as long as the daemon runs.
func keepTracepoints() []tracepoint {
	points, err := findTracepoints()
	if err != nil {
		return nil
	}
	if holdOpen(points) != nil {
		return nil
	}
	return points
}

// holdOpen opens an event for each of the tracepoints, or none.
func holdOpen(points []tracepoint) error {
	var fds []int
	for i := range points {
		fd, err := points[i].open(0, 0)
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			return err
		}
		fds = append(fds, fd)
	}
	return nil
}

func readTracepoints(tracefs string, points []tracepoint) error {
	for i := range points {
		p := &points[i]
		dir := filepath.Join(tracefs, "events", p.name)
		id, err := os.ReadFile(filepath.Join(dir, "id"))
		if err != nil {
			return err
		}
		if p.id, err = strconv.ParseUint(strings.TrimSpace(string(id)), 10, 64); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		format, err := os.ReadFile(filepath.Join(dir, "format"))
		if err != nil {
			return err
		}
		if err := p.parseFormat(string(format)); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

var fieldLine = regexp.MustCompile(`field:[^;]*?(\w+);\s*offset:(\d+);\s*size:(4|8);`)

func (p *tracepoint) parseFormat(format string) error {
	fields := map[string]field{}
	for _, m := range fieldLine.FindAllStringSubmatch(format, -1) {
		offset, err := strconv.Atoi(m[2])
		if err != nil {
			return err
		}
		fields[m[1]] = field{offset, int(m[3][0] - '0')}
	}
	for i, to := range []*field{&p.device, &p.number, &p.first, &p.last} {
		var ok bool
		if *to, ok = fields[p.fields[i]]; !ok {
			return fmt.Errorf("no field %s", p.fields[i])
		}
	}
	return nil
}

// filter keeps the samples of other filesystems, and most of those of the first
// block of a file, in the kernel.
func (p *tracepoint) filter(devices []uint32) string {
	var anyOf []string
	for _, d := range devices {
		anyOf = append(anyOf, fmt.Sprintf("%s == %d", p.fields[0], d))
	}
	filter := "(" + strings.Join(anyOf, " || ") + ")"
	if p.length {
		return filter
	}
	return fmt.Sprintf("%s >= %d && %s", p.fields[3], block/os.Getpagesize(), filter)
}

// pages returns what a sample tells.
func (p *tracepoint) pages(raw []byte) (of inode, first, last uint64) {
	of = inode{uint32(p.device.in(raw)), p.number.in(raw)}
	first, last = p.first.in(raw), p.last.in(raw)
	if p.length {
		page := uint64(os.Getpagesize())
		first, last = first/page, (first+max(last, 1)-1)/page
	}
	return of, first - min(first, p.behind), last
}

// in returns the value of a field of a sample, zero if the sample has no such
// place.
func (f field) in(raw []byte) uint64 {
	switch {
	case f.offset+f.size > len(raw):
		return 0
	case f.size == 8:
		return binary.NativeEndian.Uint64(raw[f.offset:])
	}
	return uint64(binary.NativeEndian.Uint32(raw[f.offset:]))
}
