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

// looksAgain is after how long the disk is looked at again.
const looksAgain = 2 * time.Second

var errNoRoom = errors.New("the disk has no room for what nobody waits for")

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

// lacksRoom says whether an error is about the disk, which may have room soon.
func lacksRoom(err error) bool { return errors.Is(err, errNoRoom) || errors.As(err, new(*fullError)) }

// A room says whether the disk has room. It is safe for concurrent use.
type room struct {
	dir    string
	limits Limits
	disk   func() (disk.DiskStat, error)
	used   func() int64

	mu     sync.Mutex
	looked time.Time
	full   bool
}

func (r *room) isFull() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.looked.IsZero() || time.Since(r.looked) >= looksAgain {
		r.full, r.looked = r.look(), time.Now()
	}
	return r.full
}

func (r *room) look() (full bool) {
	if r.limits.MaxUsed > 0 && r.used() >= r.limits.MaxUsed {
		return true
	}
	stat, err := r.disk()
	if err != nil {
		return true
	}
	least := r.limits.MinFree
	if least == 0 {
		least = stat.Total / 20
	}
	return stat.Available < max(least, reserve(stat))
}

// spare says why nothing is fetched that nobody waits for.
func (r *room) spare() error {
	if r.isFull() {
		return errNoRoom
	}
	return nil
}

// has says why so many bytes would not leave the reserve. Where nothing is known
// of the disk, writing to it will tell.
func (r *room) has(bytes int64) error {
	stat, err := r.disk()
	if err != nil || stat.Available-bytes >= reserve(stat) {
		return nil
	}
	return &fullError{r.dir, bytes, stat}
}

// thrifty reads a blob for who waits. What comes along without being waited for
// does not take the last room from what is.
type thrifty struct {
	blob.View
	room *room
}

func (v thrifty) Window() int64 {
	n := v.View.Window()
	if v.room.has(spare*n) != nil {
		return 0
	}
	return n
}

// spare is how many windows there has to be room for. What comes is as much as a
// few times its compressed size.
const spare = 16

// used are the bytes that the mounted layers take of the disk.
func (l *Layers) used() (sum int64) {
	l.each(func(open *layer) { sum += open.Disk() })
	return sum
}
