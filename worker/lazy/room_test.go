package lazy

import (
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/buildkit/util/disk"
	"github.com/stretchr/testify/require"
)

func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stat, used := disk.DiskStat{Total: 1000, Available: 60}, int64(0)
		var broken error
		r := &room{disk: func() (disk.DiskStat, error) { return stat, broken }, used: func() int64 { return used }}
		full := func() bool {
			time.Sleep(looksAgain)
			return r.isFull()
		}
		require.False(t, full())
		stat.Available = 49
		require.False(t, r.isFull(), "it has been looked at just now")
		require.True(t, full())
		r.limits.MinFree = 40
		require.False(t, full())
		used = 100
		require.False(t, full())
		r.limits.MaxUsed = 100
		require.True(t, full())
		used = 99
		require.False(t, full())
		broken = errors.New("no such disk")
		require.True(t, full())
	})
}

// On a full disk comes what somebody reads, and the rest when there is room.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	p := servePrivate(t, 10)
	l := p.open(t, Config{})
	free := make(chan int64, 1)
	free <- 0
	l.room.disk = func() (disk.DiskStat, error) {
		n := <-free
		free <- n
		return disk.DiskStat{Total: 1000, Available: n}, nil
	}
	p.set("right", true, true)
	require.NoError(t, p.fetch(t, l, "right"))
	dir := t.TempDir()
	id, err := l.ID(p.labels(""))
	require.NoError(t, err)
	require.NoError(t, l.Mount(id, dir, p.labels("")))
	defer func() { require.NoError(t, l.Unmount(dir)) }()
	require.NoError(t, l.Announce(t.Context(), p.labels("right")))
	got, err := os.ReadFile(dir + "/file-5")
	require.NoError(t, err)
	require.Equal(t, contentsOf(5), got)

	open := l.open[id]
	require.ErrorIs(t, open.Fill(t.Context()), errNoRoom)
	require.False(t, open.Complete())
	<-free
	free <- 1000
	require.Eventually(t, open.Complete, 30*time.Second, 10*time.Millisecond)
}
