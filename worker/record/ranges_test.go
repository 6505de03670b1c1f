package record

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
	"golang.org/x/sys/unix"
)

func TestRanges(t *testing.T) {
	const size = 40 << 20
	for _, test := range []struct {
		name string
		args []string
		want []profile.Range
	}{
		{"pread", []string{"workload", "pread", "/data/large", "0x1400000", "5000"}, []profile.Range{{Offset: 0, Size: block}, {Offset: 5 * block, Size: block}}},
		{"pread over a border", []string{"workload", "pread", "/data/large", "0xbffff0", "32"}, []profile.Range{{Offset: 0, Size: block}, {Offset: 2 * block, Size: 2 * block}}},
		{"mmap", []string{"workload", "mmap", "/data/large", "0x1500000", "8192"}, []profile.Range{{Offset: 0, Size: block}, {Offset: 5 * block, Size: block}}},
		{"mmap much", []string{"workload", "mmap", "/data/large", "0x1000000", "0x1000000"}, []profile.Range{{Offset: 0, Size: block}, {Offset: 4 * block, Size: 4 * block}}},
		{"head", []string{"dd", "if=/data/large", "bs=4k", "count=3", "of=/dev/null"}, []profile.Range{{Offset: 0, Size: block}}},
		{"all", []string{"cat", "/data/large"}, nil},
	} {
		for _, cached := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s cached %v", test.name, cached), func(t *testing.T) {
				s := newSandbox(t)
				s.largeFile("/data/large", size, cached)
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

// largeFile writes a large file of the lower layer and takes it out of the page
// cache if it shall not be cached.
func (s *sandbox) largeFile(name string, size int64, cached bool) {
	s.t.Helper()
	s.file(name, "")
	f, err := os.OpenFile(s.lower+name, os.O_RDWR, 0)
	check(s.t, err)
	defer f.Close()
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i)
	}
	for at := int64(0); at < size; at += int64(len(chunk)) {
		_, err := f.WriteAt(chunk, at)
		check(s.t, err)
	}
	if !cached {
		check(s.t, f.Sync())
		check(s.t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	}
}
