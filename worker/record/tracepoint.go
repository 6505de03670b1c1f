package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// A tracepoint tells of pages of a file.
type tracepoint struct {
	name string
	id   uint64
	last string // the field with the last page; the first is index
	// around says that the pages lie around the one that was touched, which is
	// not told.
	around bool

	number, device, first, end field
}

// A field is an integer in a sample.
type field struct{ offset, size int }

func tracepoints() []tracepoint {
	return []tracepoint{
		{name: "mm_filemap_get_pages", last: "last_index"},
		{name: "mm_filemap_map_pages", last: "last_index", around: true},
		{name: "mm_filemap_fault", last: "index"},
	}
}

// findTracepoints asks tracefs for the numbers and layouts, and mounts it for
// that moment where it is not.
func findTracepoints() ([]tracepoint, error) {
	points := tracepoints()
	err := readTracepoints("/sys/kernel/tracing", points)
	if !errors.Is(err, os.ErrNotExist) {
		return points, err
	}
	dir, err := os.MkdirTemp("", "buildkitd-esgz-tracefs")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	if err := unix.Mount("tracefs", dir, "tracefs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, fmt.Errorf("tracefs: %w", err)
	}
	defer mount.UnmountAll(dir, unix.MNT_DETACH)
	return points, readTracepoints(dir, points)
}

// keepTracepoints finds the tracepoints and holds each open with an event that
// is never enabled: to let go of a tracepoint's last event takes the kernel some
// 40 ms, which would be added to every recorded step. It returns none where
// there are none. They stay open as long as the daemon runs.
func keepTracepoints() []tracepoint {
	points, err := findTracepoints()
	if err != nil {
		return nil
	}
	for i := range points {
		if _, err := points[i].open(0); err != nil {
			return nil
		}
	}
	return points
}

func readTracepoints(tracefs string, points []tracepoint) error {
	for i := range points {
		p := &points[i]
		dir := filepath.Join(tracefs, "events", "filemap", p.name)
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
	for name, to := range map[string]*field{"i_ino": &p.number, "s_dev": &p.device, "index": &p.first, p.last: &p.end} {
		var ok bool
		if *to, ok = fields[name]; !ok {
			return fmt.Errorf("no field %s", name)
		}
	}
	// A map has one place for the same name twice.
	p.first = fields["index"]
	return nil
}

// filter keeps the samples of other filesystems, and of the first block of a
// file, in the kernel.
func (p *tracepoint) filter(devices []uint32) string {
	var anyOf []string
	for _, d := range devices {
		anyOf = append(anyOf, fmt.Sprintf("s_dev == %d", d))
	}
	return fmt.Sprintf("%s >= %d && (%s)", p.last, block/os.Getpagesize(), strings.Join(anyOf, " || "))
}

// pages returns what a sample tells.
func (p *tracepoint) pages(raw []byte) (of inode, first, last uint64) {
	of = inode{uint32(p.device.in(raw)), p.number.in(raw)}
	first, last = p.first.in(raw), p.end.in(raw)
	// The page in the middle is as good as any, and keeps to one block.
	if p.around && last-first < aroundPages {
		first += (last - first) / 2
		last = first
	}
	return of, first, last
}

// aroundPages is the kernel's default for what a fault maps around it: 64 KiB.
const aroundPages = 16

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
