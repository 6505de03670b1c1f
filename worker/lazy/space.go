package lazy

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/buildkit/util/disk"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/blob"
)

// Limits are where layers stop being fetched that nobody waits for. What a build
// reads is fetched all the same, until only the reserve is left of the disk.
type Limits struct {
	MinFree int64 // bytes of the disk; zero is a twentieth of it
	MaxUsed int64 // bytes of all lazy layers together; zero is no limit
}

// diskInterval is after how long the disk is looked at again.
const diskInterval = 2 * time.Second

var errNoSpace = errors.New("the disk has no room for what nobody waits for")

// maxReserve is how much of the disk lazy layers leave free, in bytes. The daemon
// needs it for its databases and for the records of builds, of which BuildKit keeps
// fifty: a build that does nothing but find its cache writes up to half a MiB. Of a
// small disk it is a fiftieth, which is good for some of these builds.
const maxReserve = 64 << 20

func reserve(s disk.DiskStat) int64 { return min(maxReserve, s.Total/50) }

// A fullError says what was not written to a disk that is full but for the
// reserve.
type fullError struct {
	dir   string
	bytes int64
	disk  disk.DiskStat
}

func (e *fullError) Error() string {
	return fmt.Sprintf("no room for %s more: the filesystem of %s has %s available, and lazy layers leave %s to the daemon; prune the build cache, let garbage collection keep less, or use a larger disk",
		units.HumanSize(float64(e.bytes)), e.dir, units.HumanSize(float64(e.disk.Available)), units.HumanSize(float64(reserve(e.disk))))
}

// lacksSpace says whether an error is about the disk, which may have room soon.
func lacksSpace(err error) bool { return errors.Is(err, errNoSpace) || errors.As(err, new(*fullError)) }

// A diskSpace says whether the disk has space. It is safe for concurrent use.
type diskSpace struct {
	dir    string
	limits Limits
	disk   func() (disk.DiskStat, error)
	used   func() int64

	mu     sync.Mutex
	looked time.Time
	full   bool
}

func (s *diskSpace) isFull() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.looked.IsZero() || time.Since(s.looked) >= diskInterval {
		s.full, s.looked = s.look(), time.Now()
	}
	return s.full
}

func (s *diskSpace) look() (full bool) {
	if s.limits.MaxUsed > 0 && s.used() >= s.limits.MaxUsed {
		return true
	}
	stat, err := s.disk()
	if err != nil {
		return true
	}
	least := s.limits.MinFree
	if least == 0 {
		least = stat.Total / 20
	}
	return stat.Available < max(least, reserve(stat))
}

// spare says why nothing is fetched that nobody waits for.
func (s *diskSpace) spare() error {
	if s.isFull() {
		return errNoSpace
	}
	return nil
}

// check says why so many bytes would not leave the reserve. Where nothing is known
// of the disk, writing to it will tell.
func (s *diskSpace) check(bytes int64) error {
	stat, err := s.disk()
	if err != nil || stat.Available-bytes >= reserve(stat) {
		return nil
	}
	return &fullError{s.dir, bytes, stat}
}

// A limitedView reads a blob for reads that wait. What comes along without being
// waited for does not take the last space.
type limitedView struct {
	blob.View
	space *diskSpace
}

func (v limitedView) Window() int64 {
	n := v.View.Window()
	if v.space.check(spare*n) != nil {
		return 0
	}
	return n
}

// spare is how many windows there has to be room for. What comes is as much as a
// few times its compressed size.
const spare = 16

// used are the bytes that the mounted layers take of the disk.
func (l *Layers) used() (sum int64) {
	l.each(func(mounted *layer) { sum += mounted.Disk() })
	return sum
}
