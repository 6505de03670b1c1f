package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ringSize is the memory for samples of one CPU, in bytes, a power of two. Two
// megabytes are 32,000 samples, which is what a process can make in a tenth of
// a second: that long the daemon may have to wait for a CPU. Where there are
// many CPUs, it waits less. The rings are drained when a quarter is full.
func ringSize(cpus int) int {
	const each, least, all = 2 << 20, 256 << 10, 16 << 20
	size := each
	for size > least && size*cpus > all {
		size /= 2
	}
	return size
}

// samples are what the tracepoints tell, one ring for each CPU.
type samples struct {
	points []tracepoint
	rings  []ring
	fds    []int // of all tracepoints on all CPUs
	cpus   []int
	self   uint32
}

type ring struct {
	fd     int
	header *unix.PerfEventMmapPage
	memory []byte // header and data
	data   []byte
}

// openSamples watches the files of the given devices.
func openSamples(points []tracepoint, devices []uint32) (*samples, error) {
	if len(points) == 0 || len(devices) == 0 {
		return nil, errors.New("no tracepoints, or no layer with pages of its own")
	}
	cpus, err := onlineCPUs()
	s := &samples{points: points, self: uint32(os.Getpid()), cpus: cpus}
	for _, cpu := range cpus {
		if err == nil {
			err = s.openCPU(cpu, ringSize(len(cpus)), devices)
		}
	}
	for _, fd := range s.fds {
		if err == nil {
			err = unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0)
		}
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("perf events: %w", err)
	}
	return s, nil
}

func (s *samples) openCPU(cpu, size int, devices []uint32) error {
	for i := range s.points {
		fd, err := s.points[i].open(cpu, size/4)
		if err != nil {
			return err
		}
		s.fds = append(s.fds, fd)
		if err := setFilter(fd, s.points[i].filter(devices)); err != nil {
			return err
		}
		if i > 0 {
			if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_OUTPUT, s.rings[len(s.rings)-1].fd); err != nil {
				return err
			}
			continue
		}
		memory, err := unix.Mmap(fd, 0, os.Getpagesize()+size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		header := (*unix.PerfEventMmapPage)(unsafe.Pointer(&memory[0]))
		s.rings = append(s.rings, ring{fd, header, memory, memory[os.Getpagesize():]})
	}
	return nil
}

// open opens an event that wakes its reader when there are that many bytes.
func (p *tracepoint) open(cpu, wakeup int) (int, error) {
	attr := unix.PerfEventAttr{
		Type:        unix.PERF_TYPE_TRACEPOINT,
		Config:      p.id,
		Sample:      1,
		Sample_type: unix.PERF_SAMPLE_TID | unix.PERF_SAMPLE_RAW,
		Read_format: unix.PERF_FORMAT_LOST,
		Bits:        unix.PerfBitDisabled | unix.PerfBitWatermark,
		Wakeup:      uint32(wakeup),
	}
	attr.Size = uint32(unsafe.Sizeof(attr))
	return unix.PerfEventOpen(&attr, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
}

func setFilter(fd int, filter string) error {
	text, err := unix.BytePtrFromString(filter)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.PERF_EVENT_IOC_SET_FILTER, uintptr(unsafe.Pointer(text))); errno != 0 {
		return fmt.Errorf("filter %q: %w", filter, errno)
	}
	return nil
}

func (s *samples) close() {
	for _, r := range s.rings {
		_ = unix.Munmap(r.memory)
	}
	for _, fd := range s.fds {
		unix.Close(fd)
	}
}

// lost tells whether samples are missing: a ring was full, or a CPU that has no
// ring was there for a time. The rings themselves tell of a loss only with the
// next sample, which need not come.
func (s *samples) lost() bool {
	cpus, err := onlineCPUs()
	if err != nil || !slices.Equal(cpus, s.cpus) {
		return true
	}
	var counters [16]byte // how often, and how often without a sample
	for _, fd := range s.fds {
		n, err := unix.Read(fd, counters[:])
		if err != nil || n != len(counters) || binary.NativeEndian.Uint64(counters[8:]) > 0 {
			return true
		}
	}
	return false
}

// drain moves what the rings hold to t.
func (s *samples) drain(t *touches) {
	for _, r := range s.rings {
		head := atomic.LoadUint64(&r.header.Data_head)
		tail := r.header.Data_tail
		for tail < head {
			record := r.record(tail)
			if len(record) == 0 {
				t.lost = true
				tail = head
				break
			}
			s.take(record, t)
			tail += uint64(len(record))
		}
		atomic.StoreUint64(&r.header.Data_tail, tail)
	}
}

// record returns the record at a position, put together if it goes around the
// end of the ring. It starts with its type, 4 bytes, and ends its 8 bytes of
// header with its length, 2 bytes.
func (r ring) record(at uint64) []byte {
	start := int(at % uint64(len(r.data)))
	size := int(binary.NativeEndian.Uint16(r.data[start+6:]))
	if start+size <= len(r.data) {
		return r.data[start : start+size]
	}
	return append(append([]byte(nil), r.data[start:]...), r.data[:start+size-len(r.data)]...)
}

// take reads a record: behind the header stand process and thread, then the
// length of the tracepoint's own sample, which starts with the tracepoint's
// number, 2 bytes.
func (s *samples) take(record []byte, t *touches) {
	const sample = 20
	if binary.NativeEndian.Uint32(record) != unix.PERF_RECORD_SAMPLE || len(record) < sample+2 {
		return
	}
	if binary.NativeEndian.Uint32(record[8:]) == s.self {
		return
	}
	raw := record[sample:]
	for i := range s.points {
		if s.points[i].id == uint64(binary.NativeEndian.Uint16(raw)) {
			t.add(s.points[i].pages(raw))
			return
		}
	}
}

// onlineCPUs reads a list such as 0-3,8.
func onlineCPUs() ([]int, error) {
	text, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, err
	}
	var cpus []int
	for _, part := range strings.Split(strings.TrimSpace(string(text)), ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		for cpu := first; cpu <= last; cpu++ {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}
