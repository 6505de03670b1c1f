package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugeMappings returns how often the kernel has mapped a huge page of a file,
// anywhere. No tracepoint tells of it. Huge pages of files on a disk come from
// writes of that size, and from long reads where the disk has a large readahead.
func hugeMappings() (uint64, error) {
	stat, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(stat), "\nthp_file_mapped ")
	if !ok {
		return 0, nil // a kernel without huge pages
	}
	count, _, _ := strings.Cut(rest, "\n")
	return strconv.ParseUint(count, 10, 64)
}

// addHuge adds what of a file may have been touched through huge pages: all that
// the page cache has in such pages. It finds them by mapping the file itself.
func (t *touches) addHuge(fd int, st unix.Stat_t) error {
	huge, err := hugeSize()
	if err != nil || huge > st.Size {
		return err
	}
	memory, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(memory)
	if uintptr(unsafe.Pointer(&memory[0]))%uintptr(huge) != 0 {
		return errors.New("the kernel mapped a file where it has no huge pages")
	}
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer pagemap.Close()
	page := int64(os.Getpagesize())
	for at := int64(0); at+huge <= st.Size; at += huge {
		if !cached(fd, at) {
			continue
		}
		if err := unix.Madvise(memory[at:at+page], unix.MADV_POPULATE_READ); err != nil {
			return err
		}
		// With a huge page came all of it, otherwise what is around the first.
		if ok, err := mapped(pagemap, unsafe.Pointer(&memory[at+huge/2])); err != nil {
			return err
		} else if ok {
			t.add(inodeOf(st), uint64(at/page), uint64((at+huge-1)/page))
		}
	}
	return nil
}

// hugeSize is the size of a huge page in bytes.
func hugeSize() (int64, error) {
	text, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}

// cached tells whether the page cache has the byte at an offset.
func cached(fd int, offset int64) bool {
	n, _ := unix.Preadv2(fd, [][]byte{make([]byte, 1)}, offset, unix.RWF_NOWAIT)
	return n == 1
}

// mapped tells whether a page of this process is mapped.
func mapped(pagemap *os.File, address unsafe.Pointer) (bool, error) {
	const size, present = 8, 1 << 63
	var entry [size]byte
	if _, err := pagemap.ReadAt(entry[:], int64(uintptr(address))/int64(os.Getpagesize())*size); err != nil {
		return false, fmt.Errorf("pagemap: %w", err)
	}
	return binary.NativeEndian.Uint64(entry[:])&present != 0, nil
}
