package record

import (
	"math/bits"
	"os"
	"slices"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
	"golang.org/x/sys/unix"
)

const (
	// block is the unit of ranges, in bytes: eStargz's chunks have this size by
	// default, and less than a chunk cannot be fetched. It also keeps profiles
	// alike: what is told of a read or a page fault goes beyond it by up to
	// 124 KiB, not always the same, and few files are read so close to the
	// border of a block only.
	block = 4 << 20
	// largeFile is the size from which on ranges are recorded. Up to a block
	// there is nothing to tell apart.
	largeFile = block + 1
)

// touches are the blocks of files that were touched. The first block of a file
// counts always: the tracepoints leave it out, so that small files, which are
// nearly all, cost nothing.
type touches struct {
	blocks map[inode]map[uint64]struct{}
	latest span // of the last sample: the next is often the same
	// lost says that the blocks are not all that were touched.
	lost bool
	// huge says that some file was mapped by huge pages meanwhile.
	huge bool
	// devices are those whose files are watched.
	devices []uint32
	shift   int // from the index of a page to that of its block
}

type inode struct {
	device uint32 // as the kernel has it, see kernelDevice
	number uint64
}

// A span is some blocks of a file, the last included.
type span struct {
	inode
	first, last uint64
}

func inodeOf(st unix.Stat_t) inode { return inode{kernelDevice(st.Dev), st.Ino} }

// kernelDevice returns a device of stat(2) in the kernel's own encoding.
func kernelDevice(dev uint64) uint32 {
	return unix.Major(dev)<<20 | unix.Minor(dev)
}

func newTouches(devices []uint32) *touches {
	return &touches{
		blocks:  map[inode]map[uint64]struct{}{},
		devices: devices,
		shift:   bits.TrailingZeros(uint(block / os.Getpagesize())),
	}
}

// add takes the pages from first to last of a file.
func (t *touches) add(of inode, first, last uint64) {
	span := span{of, first >> t.shift, last >> t.shift}
	if span == t.latest {
		return
	}
	t.latest = span
	blocks := t.blocks[of]
	if blocks == nil {
		blocks = map[uint64]struct{}{}
		t.blocks[of] = blocks
	}
	for b := span.first; b <= span.last; b++ {
		blocks[b] = struct{}{}
	}
}

// knows tells whether ranges of a file can be told.
func (t *touches) knows(st unix.Stat_t) bool {
	return t != nil && !t.lost && st.Size >= largeFile && slices.Contains(t.devices, kernelDevice(st.Dev))
}

// ranges returns what was touched of a file, none if that is all or unknown.
func (t *touches) ranges(st unix.Stat_t) []profile.Range {
	if !t.knows(st) {
		return nil
	}
	touched := t.blocks[inodeOf(st)]
	var ranges []profile.Range
	for start := int64(0); start < st.Size; start += block {
		if _, ok := touched[uint64(start/block)]; !ok && start > 0 {
			continue
		}
		size := min(block, st.Size-start)
		if last := len(ranges) - 1; last >= 0 && ranges[last].Offset+ranges[last].Size == start {
			ranges[last].Size += size
		} else {
			ranges = append(ranges, profile.Range{Offset: start, Size: size})
		}
	}
	if ranges[0].Size == st.Size {
		return nil
	}
	return ranges
}
