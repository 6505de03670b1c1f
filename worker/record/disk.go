package record

import (
	"time"

	"golang.org/x/sys/unix"
)

// A disk is what a root filesystem is written to: the daemon's own, until the
// workload is over and what it wrote is thrown away. The daemon needs some of it
// meanwhile, so that a workload is stopped before it has filled the disk.
type disk struct {
	root    int
	reserve uint64 // bytes
}

const (
	// diskTime is the time between two looks. A disk that takes 3 GB/s takes
	// 300 MB meanwhile.
	diskTime = 100 * time.Millisecond
	// diskReserve is what a workload has to leave, in bytes: three times that.
	// On a disk with less than twice as much it is half of what is there.
	diskReserve = 1 << 30
)

func openDisk(root int) disk {
	free, _ := freeBytes(root)
	return disk{root, min(diskReserve, free/2)}
}

// low tells whether the reserve is gone.
func (d disk) low() bool {
	free, ok := freeBytes(d.root)
	return ok && free < d.reserve
}

func freeBytes(root int) (bytes uint64, ok bool) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(root, &fs); err != nil {
		return 0, false
	}
	return fs.Bavail * uint64(fs.Bsize), true
}
