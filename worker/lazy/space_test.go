package lazy

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/buildkit/util/disk"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/blob"
)

func TestDiskSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stat, used := disk.DiskStat{Total: 1000, Available: 60}, int64(0)
		var broken error
		s := &diskSpace{disk: func() (disk.DiskStat, error) { return stat, broken }, used: func() int64 { return used }}
		full := func() bool {
			time.Sleep(diskInterval)
			return s.isFull()
		}
		require.False(t, full())
		stat.Available = 49
		require.False(t, s.isFull(), "it has been looked at just now")
		require.True(t, full())
		s.limits.MinFree = 40
		require.False(t, full())
		used = 100
		require.False(t, full())
		s.limits.MaxUsed = 100
		require.True(t, full())
		used = 99
		require.False(t, full())
		broken = errors.New("no such disk")
		require.True(t, full())
	})
}

// What somebody waits for may take all of the disk but the reserve, which is small
// on a small disk.
func TestReserve(t *testing.T) {
	for _, c := range []struct{ total, reserve int64 }{
		{1 << 40, 64 << 20}, {4 << 30, 64 << 20}, {1 << 30, 1 << 30 / 50}, {200 << 20, 4 << 20}, {0, 0},
	} {
		stat := disk.DiskStat{Total: c.total, Available: c.reserve + 4<<20, Free: c.total}
		var broken error
		s := &diskSpace{dir: "/root", disk: func() (disk.DiskStat, error) { return stat, broken }, used: func() int64 { return 0 }}
		require.NoError(t, s.check(4<<20), c)
		err := s.check(4<<20 + 1)
		require.ErrorContains(t, err, "no room for 4.194MB more: the filesystem of /root has ", c)
		require.ErrorContains(t, err, "prune the build cache")
		require.True(t, lacksSpace(fmt.Errorf("layer: %w", err)))
		stat.Available = 0
		require.Error(t, s.check(1))
		broken = errors.New("no such disk")
		require.NoError(t, s.check(1))
	}
	stat := disk.DiskStat{Total: 200 << 20, Available: 5 << 20}
	s := &diskSpace{limits: Limits{MinFree: 1}, disk: func() (disk.DiskStat, error) { return stat, nil }}
	require.False(t, s.look())
	stat.Available = 3 << 20
	require.True(t, s.look(), "whatever the policy says")
}

// A read does not bring its neighbours along where there is little room left.
func TestLimitedView(t *testing.T) {
	stat := disk.DiskStat{Total: 1 << 40, Available: 1 << 40}
	s := &diskSpace{disk: func() (disk.DiskStat, error) { return stat, nil }}
	line := blob.NewLine(blob.Options{})
	v := limitedView{line.Open(digest.FromString("")).With(blob.Wanted), s}
	require.Positive(t, v.Window())
	stat.Available = maxReserve + v.Window()
	require.Zero(t, v.Window())
}

// On a full disk comes what somebody reads, and the rest when there is room.
func TestFullDisk(t *testing.T) {
	p := servePrivate(t, 10)
	l := p.open(t, Config{})
	free := make(chan int64, 1)
	const total = 1 << 30
	free <- total / 30
	l.space.disk = func() (disk.DiskStat, error) {
		n := <-free
		free <- n
		return disk.DiskStat{Total: total, Available: n}, nil
	}
	p.set("right", true, true)
	require.NoError(t, p.fetch(t, l, "right"))
	id, dir := p.mount(t, l)
	require.NoError(t, l.Announce(t.Context(), p.labels("right")))
	got, err := os.ReadFile(dir + "/file-5")
	require.NoError(t, err)
	require.Equal(t, contentsOf(5), got)

	mounted := l.mounted[id]
	require.ErrorIs(t, mounted.Fill(t.Context()), errNoSpace)
	require.False(t, mounted.Complete())
	<-free
	free <- total
	require.Eventually(t, mounted.Complete, time.Minute, 10*time.Millisecond)
}

// A layer that asks for room while it is stopped does not keep the others from
// being closed.
func TestCloseWhileFetching(t *testing.T) {
	p := servePrivate(t, 10)
	l := p.open(t, Config{})
	asks, stopped := make(chan struct{}, 1), make(chan struct{})
	l.space.limits.MaxUsed = 1
	l.space.used = func() int64 {
		asks <- struct{}{}
		<-stopped
		return l.used()
	}
	p.set("right", true, true)
	require.NoError(t, p.fetch(t, l, "right"))
	id, _ := p.mount(t, l)
	require.NoError(t, l.Announce(t.Context(), p.labels("right")))
	<-asks
	mounted := l.mounted[id]
	cancel := mounted.cancel
	mounted.cancel = func() { cancel(); close(stopped) }
	closed := make(chan error, 1)
	go func() { closed <- l.Close() }()
	select {
	case err := <-closed:
		require.NoError(t, err)
	case <-time.After(time.Minute):
		require.FailNow(t, "Close hangs")
	}
}
