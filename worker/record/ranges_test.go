package record

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

func TestRanges(t *testing.T) {
	const size = 40 << 20
	for _, test := range []struct {
		name string
		args []string
		want []profile.Range
	}{
		{"pread", []string{"workload", "pread", "/data/large", "0x1480000", "5000"}, []profile.Range{{Offset: 0, Size: block}, {Offset: 5 * block, Size: block}}},
		{"pread over a border", []string{"workload", "pread", "/data/large", "0xbffff0", "32"}, []profile.Range{{Offset: 0, Size: block}, {Offset: 2 * block, Size: 2 * block}}},
		{"direct", []string{"workload", "direct", "/data/large", "0x1400000", "4096"}, []profile.Range{{Offset: 0, Size: block}, {Offset: 5 * block, Size: block}}},
		{"direct over a border", []string{"workload", "direct", "/data/large", "0xbff000", "8192"}, []profile.Range{{Offset: 0, Size: block}, {Offset: 2 * block, Size: 2 * block}}},
		{"mmap", []string{"workload", "mmap", "/data/large", "0x1500000", "8192"}, []profile.Range{{Offset: 0, Size: block}, {Offset: 5 * block, Size: block}}},
		{"mmap much", []string{"workload", "mmap", "/data/large", "0x1000000", "0x1000000"}, []profile.Range{{Offset: 0, Size: block}, {Offset: 4 * block, Size: 4 * block}}},
		{"head", []string{"dd", "if=/data/large", "bs=4k", "count=3", "of=/dev/null"}, []profile.Range{{Offset: 0, Size: block}}},
		{"all", []string{"dd", "if=/data/large", "bs=64k", "of=/dev/null"}, nil},
		{"read and written", []string{"sh", "-c", "workload pread /data/large 0x1480000 1; echo >>/data/large"}, nil},
		{"written and read", []string{"sh", "-c", "echo >>/data/large; workload pread /data/large 0x1480000 1"}, nil},
		{"read and deleted", []string{"sh", "-c", "workload pread /data/large 0x1480000 1; rm /data/large"}, nil},
	} {
		for _, cached := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s cached %v", test.name, cached), func(t *testing.T) {
				s := newSandbox(t)
				s.largeFile("/data/large", size, 1<<20, cached)
				p, sum := s.record(Options{}, test.args...)
				if !sum.Ranges {
					t.Skip("ranges cannot be recorded here")
				}
				f := find(t, p, "data/large")
				if f.Size != size || !slices.Equal(f.Ranges, test.want) {
					t.Errorf("%+v, want %v", f, test.want)
				}
			})
		}
	}
}

// A read that takes what is there already, before it waits for the rest, tells
// of the rest alone. It happens once in some hundred cold reads.
func TestReadsInParts(t *testing.T) {
	s := newSandbox(t)
	s.largeFile("/data/large", 3*block, 1<<20, true)
	points, device := keepTracepoints(), s.device()
	f, err := os.Open(s.lower + "/data/large")
	check(t, err)
	defer f.Close()
	for i := range 2000 {
		check(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
		samples, err := openSamples(points, []uint32{device})
		if err != nil {
			t.Skip("ranges cannot be recorded here: ", err)
		}
		samples.self = 0
		_, err = f.ReadAt(make([]byte, 32), 2*block-16)
		touches := newTouches([]uint32{device})
		samples.drain(touches)
		touches.lost = samples.lost()
		samples.close()
		check(t, err)
		var st unix.Stat_t
		check(t, unix.Fstat(int(f.Fd()), &st))
		if got := touches.ranges(st); got != nil {
			t.Fatalf("read %d: %v, want all", i, got)
		}
	}
}

// What is mapped by huge pages makes no events, so that all of the file that is
// cached in huge pages counts.
func TestHugePages(t *testing.T) {
	const size, at = 40 << 20, 5 * block
	s := newSandbox(t)
	s.largeFile("/data/large", size, 8<<20, true)
	before, err := hugeMappings()
	check(t, err)
	p, sum := s.record(Options{}, "workload", "mmap", "/data/large", fmt.Sprint(at), "1")
	after, err := hugeMappings()
	check(t, err)
	if before == after || !sum.Ranges {
		t.Skip("no huge pages of files here")
	}
	f := find(t, p, "data/large")
	if len(f.Ranges) > 0 && !slices.ContainsFunc(f.Ranges, func(r profile.Range) bool { return r.Offset <= at && at < r.Offset+r.Size }) {
		t.Errorf("%+v, want what is at %d", f, at)
	}
}

// A ring that is full tells so with the next sample it has room for. When there
// is none, the counters do.
func TestLostSamples(t *testing.T) {
	s := newSandbox(t)
	s.largeFile("/data/large", 2*block, 1<<20, true)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f, err := os.Open(s.lower + "/data/large")
	check(t, err)
	defer f.Close()
	samples, err := openSamples(keepTracepoints(), []uint32{s.device()})
	if err != nil {
		t.Skip("ranges cannot be recorded here: ", err)
	}
	defer samples.close()
	var one unix.CPUSet
	one.Set(samples.cpus[0])
	var all unix.CPUSet
	check(t, unix.SchedGetaffinity(0, &all))
	check(t, unix.SchedSetaffinity(0, &one))
	defer unix.SchedSetaffinity(0, &all)
	if samples.lost() {
		t.Fatal("samples are lost before there are any")
	}
	for range ringSize(len(samples.cpus)) / 32 {
		_, err := f.ReadAt(make([]byte, 1), block)
		check(t, err)
	}
	if !samples.lost() {
		t.Error("no sample was lost of more than a ring can hold")
	}
}

// Where the tracepoints do not tell of a file, it counts as read whole.
func TestFilesystems(t *testing.T) {
	ranges := []profile.Range{{Offset: 0, Size: block}, {Offset: 5 * block, Size: block}}
	for _, test := range []struct {
		name string
		make func(t *testing.T) mount.Mount
		want []profile.Range
	}{
		{"tmpfs", func(*testing.T) mount.Mount { return mount.Mount{Type: "tmpfs", Source: "tmpfs"} }, nil},
		{"ext4", diskOf("ext4"), ranges},
		{"xfs", diskOf("xfs"), ranges},
		{"btrfs", diskOf("btrfs"), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSandbox(t)
			check(t, mount.All([]mount.Mount{test.make(t)}, s.lower))
			t.Cleanup(func() { check(t, mount.Unmount(s.lower, 0)) })
			check(t, os.Mkdir(s.lower+"/data", 0o755))
			s.largeFile("/data/large", 40<<20, 1<<20, true)
			for _, command := range []string{"pread", "direct", "mmap"} {
				if command == "direct" && test.name == "tmpfs" {
					continue
				}
				p, _ := s.record(Options{}, "workload", command, "/data/large", "0x1480000", "4096")
				if f := find(t, p, "data/large"); !slices.Equal(f.Ranges, test.want) {
					t.Errorf("%s: %+v, want %v", command, f, test.want)
				}
			}
		})
	}
}

// diskOf makes a disk with a filesystem, if there is a command to make one.
func diskOf(fs string) func(t *testing.T) mount.Mount {
	return func(t *testing.T) mount.Mount {
		t.Helper()
		disk := filepath.Join(t.TempDir(), "disk")
		check(t, os.WriteFile(disk, nil, 0o600))
		check(t, os.Truncate(disk, 512<<20))
		if _, err := exec.LookPath("mkfs." + fs); err != nil {
			t.Skip("needs mkfs." + fs)
		}
		if out, err := exec.Command("mkfs."+fs, "-q", disk).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.%s: %v\n%s", fs, err, out)
		}
		return mount.Mount{Type: fs, Source: disk, Options: []string{"loop"}}
	}
}

// device is that of the lower layer.
func (s *sandbox) device() uint32 {
	s.t.Helper()
	var st unix.Stat_t
	check(s.t, unix.Stat(s.lower, &st))
	return kernelDevice(st.Dev)
}

// largeFile writes a large file of the lower layer, in pieces, and takes it out
// of the page cache if it shall not be cached.
func (s *sandbox) largeFile(name string, size int64, piece int, cached bool) {
	s.t.Helper()
	s.file(name, "")
	f, err := os.OpenFile(s.lower+name, os.O_RDWR, 0)
	check(s.t, err)
	defer f.Close()
	chunk := make([]byte, piece)
	for i := range chunk {
		chunk[i] = byte(i)
	}
	for at := int64(0); at < size; at += int64(len(chunk)) {
		_, err := f.WriteAt(chunk, at)
		check(s.t, err)
	}
	check(s.t, f.Sync())
	if !cached {
		check(s.t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	}
}
