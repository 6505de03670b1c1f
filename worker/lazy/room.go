package lazy

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/moby/buildkit/util/disk"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/blob"
)

// Limits are where layers stop being fetched that nobody waits for. What a build
// reads is fetched all the same.
type Limits struct {
	MinFree int64 // bytes of the disk; zero is a twentieth of it
	MaxUsed int64 // bytes of all lazy layers together; zero is no limit
}

// looksAgain is after how long the disk is looked at again.
const looksAgain = 2 * time.Second

var errNoRoom = errors.New("the disk has no room for what nobody waits for")

// A room says whether the disk has room. It is safe for concurrent use.
type room struct {
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
	return stat.Available < least
}

// roomy reads a blob as long as the disk has room.
type roomy struct {
	blob.View
	room *room
}

func (v roomy) Range(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if v.room.isFull() {
		return nil, errNoRoom
	}
	return v.View.Range(ctx, off, n)
}

// used are the bytes that the mounted layers take of the disk.
func (l *Layers) used() (sum int64) {
	var open []*layer
	l.each(func(o *layer) { open = append(open, o) })
	for _, o := range open {
		sum += o.Disk()
	}
	return sum
}
