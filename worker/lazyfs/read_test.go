package lazyfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// soon is how long something takes that is stuck.
const soon = time.Minute

// TestReads reads at places and in sizes that the kernel makes of several
// questions, and maps.
func TestReads(t *testing.T) {
	const size = 5<<20 + 4711
	dir := mounted(t, layerOf(large("file", size)), Options{})
	f, err := os.Open(filepath.Join(dir, "file"))
	require.NoError(t, err)
	defer f.Close()
	for _, off := range []int64{0, 1, 4095, 1<<20 - 1, size - 1, size - 5000, size, size + 10} {
		for _, n := range []int{1, 4096, 100_000, 3 << 20} {
			checkRead(t, f, size, off, n)
		}
	}
	mapped := mapFile(t, f, size)
	defer unix.Munmap(mapped)
	expected := make([]byte, size)
	pattern(size).ReadAt(expected, 0)
	require.True(t, string(expected) == string(mapped))
}

// mapFile has the kernel read all of it before it returns: whoever waits for a
// page keeps the processor from who would answer, in this very process.
func mapFile(t *testing.T, f *os.File, size int) []byte {
	mapped, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_POPULATE)
	require.NoError(t, err)
	return mapped
}

func checkRead(t *testing.T, f io.ReaderAt, size, off int64, n int) {
	expected, got := make([]byte, n), make([]byte, n)
	e, expectedErr := io.ReadFull(io.NewSectionReader(pattern(size), off, int64(n)), expected)
	g, err := io.ReadFull(io.NewSectionReader(f, off, int64(n)), got)
	require.Equal(t, expectedErr, err, "%d bytes at %d", n, off)
	require.Equal(t, e, g)
	require.True(t, string(expected[:e]) == string(got[:g]), "%d bytes at %d", n, off)
}

// TestFailure reads what cannot be had: that is an EIO, at once while it is
// known, and goes on as soon as it can be had again.
func TestFailure(t *testing.T) {
	runtime.LockOSThread() // failures are those of a thread
	defer runtime.UnlockOSThread()
	var clock fakeClock
	var gone atomic.Bool
	var tries atomic.Int32
	layer := layerOf(file("file", "content"), file("other", "content"))
	layer.before = func(context.Context, store.Node, int64) error {
		if gone.Load() {
			tries.Add(1)
			return errors.New("the registry is gone")
		}
		return nil
	}
	dir := mounted(t, layer, Options{now: clock.now})
	gone.Store(true)
	_, err := os.ReadFile(filepath.Join(dir, "file"))
	require.ErrorIs(t, err, unix.EIO)
	require.EqualValues(t, 1, tries.Load(), "the kernel asked twice")
	gone.Store(false)
	require.Equal(t, "content", read(t, dir, "other"))
	clock.forward(failureLasts - 1)
	_, err = os.ReadFile(filepath.Join(dir, "file"))
	require.ErrorIs(t, err, unix.EIO)
	clock.forward(1)
	require.Equal(t, "content", read(t, dir, "file"))
}

// TestWaitingReadHasNoBuffer sees no body of a read before its contents are here:
// threads of a step can have any number of them wait.
func TestWaitingReadHasNoBuffer(t *testing.T) {
	const size = 1 << 20
	layer, r := layerOf(large("file", size)), newRequest()
	waited := false
	layer.before = func(context.Context, store.Node, int64) error {
		waited = true
		require.LessOrEqual(t, cap(r.out), requestSize)
		return nil
	}
	const off = 4096 // of a read that starts no reading ahead
	*message[fuse.ReadIn](r) = fuse.ReadIn{
		InHeader: fuse.InHeader{Opcode: opRead, NodeId: idOf(layer.find("file"))},
		Offset:   off, Size: size - off,
	}
	c := newConn(nil, newFilesystem(layer, Options{}))
	require.Zero(t, c.read(r, message[fuse.ReadIn](r)))
	require.True(t, waited)
	require.Len(t, r.out, headerSize+size-off)
}

// TestFailureOfAnotherThread reads what has just failed for somebody else, who may
// have had other credentials.
func TestFailureOfAnotherThread(t *testing.T) {
	var gone atomic.Bool
	layer := layerOf(file("file", "content"))
	layer.before = func(context.Context, store.Node, int64) error {
		if gone.Load() {
			return errors.New("the registry is gone")
		}
		return nil
	}
	dir := mounted(t, layer, Options{})
	gone.Store(true)
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // which ends with the goroutine
		_, err := os.ReadFile(filepath.Join(dir, "file"))
		failed <- err
	}()
	require.ErrorIs(t, <-failed, unix.EIO)
	gone.Store(false)
	go func() {
		runtime.LockOSThread()
		_, err := os.ReadFile(filepath.Join(dir, "file"))
		failed <- err
	}()
	require.NoError(t, <-failed)
}

// TestFailureSparesWhatIsHere reads a part that is here of a range that could not
// be read as a whole.
func TestFailureSparesWhatIsHere(t *testing.T) {
	layer := layerOf(large("file", 64<<10))
	layer.here = func(off int64) bool { return off > 0 }
	layer.before = func(_ context.Context, _ store.Node, off int64) error {
		if off == 0 {
			return errors.New("the registry is gone")
		}
		return nil
	}
	dir := mounted(t, layer, Options{})
	fd, err := unix.Open(filepath.Join(dir, "file"), unix.O_RDONLY|unix.O_DIRECT, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	_, err = unix.Pread(fd, make([]byte, 64<<10), 0)
	require.ErrorIs(t, err, unix.EIO)
	n, err := unix.Pread(fd, make([]byte, 4096), 8192)
	require.NoError(t, err)
	require.Equal(t, 4096, n)
}

// TestInterrupts interrupts a read before and while it waits, and one that is not
// known.
func TestInterrupts(t *testing.T) {
	const gone = 1<<31 - 1 // no thread has this number
	for name, early := range map[string]bool{"before it waits": true, "while it waits": false} {
		t.Run(name, func(t *testing.T) {
			c := newConn(nil, newFilesystem(layerOf(), Options{}))
			require.Equal(t, unix.EAGAIN, c.interrupt(7), "it was not received yet")
			r := c.reads.begin(&fuse.InHeader{Unique: 7, Caller: fuse.Caller{Pid: gone}})
			if early {
				require.Zero(t, c.interrupt(7))
				require.Zero(t, c.interrupt(7))
			}
			ctx := c.wait(r)
			if !early {
				require.NoError(t, ctx.Err())
				require.Zero(t, c.interrupt(7))
			}
			<-ctx.Done()
			c.reads.end(r)
			c.serving.Wait()
			require.Empty(t, c.reads.of)
		})
	}
}

// A gate has reads wait until it opens.
type gate struct {
	layer   *fake
	waiting chan struct{} // gets one for each
	open    chan struct{}
	ended   chan error // of those whose context was over first
}

func gated(parts ...part) *gate {
	g := &gate{layerOf(parts...), make(chan struct{}, 100), make(chan struct{}), make(chan error, 100)}
	g.layer.before = func(ctx context.Context, _ store.Node, _ int64) error {
		done := ctx.Done()
		g.waiting <- struct{}{}
		select {
		case <-g.open:
			return nil
		case <-done:
			g.ended <- ctx.Err()
			return ctx.Err()
		}
	}
	return g
}

// Programs that read a file: by the page cache, where the kernel reads ahead for
// whoever wants it, and directly, for themselves alone.
var (
	cached = []string{"cat", "file"}
	direct = []string{"dd", "if=file", "iflag=direct", "bs=4096", "status=none"}
)

// start starts a program that reads, and waits until it waits.
func (g *gate) start(t *testing.T, dir string, program []string) *exec.Cmd {
	cmd := exec.Command(program[0], program[1:]...)
	cmd.Dir = dir
	out, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	t.Cleanup(func() { out.Close() })
	cmd.Stdout = out
	require.NoError(t, cmd.Start())
	receive(t, g.waiting)
	return cmd
}

func receive[T any](t *testing.T, c <-chan T) (v T) {
	select {
	case v = <-c:
	case <-time.After(soon):
		require.FailNow(t, "nothing happens")
	}
	return v
}

// TestKilled kills who waits. It ends, and so does what was read for it alone.
func TestKilled(t *testing.T) {
	for _, program := range [][]string{cached, direct} {
		t.Run(program[0], func(t *testing.T) {
			g := gated(file("file", "content"))
			cmd := g.start(t, mounted(t, g.layer, Options{}), program)
			require.NoError(t, cmd.Process.Kill())
			require.Error(t, cmd.Wait())
			if program[0] == direct[0] {
				require.ErrorIs(t, receive(t, g.ended), context.Canceled)
			}
		})
	}
}

// TestSignalled sends signals that do not kill to who waits: it goes on waiting,
// and gets all of it.
func TestSignalled(t *testing.T) {
	g := gated(file("file", "content"))
	server := serving(t, g.layer, Options{})
	looks := make(chan struct{})
	reads := &server.conn.reads
	reads.mu.Lock()
	reads.dying = func(thread uint32) bool {
		select {
		case looks <- struct{}{}:
		case <-g.open:
		}
		return dying(thread)
	}
	reads.mu.Unlock()
	cmd := g.start(t, server.dir, direct)
	for range 5 {
		require.NoError(t, cmd.Process.Signal(unix.SIGUSR1)) // dd reports its progress
		receive(t, looks)
		receive(t, looks) // after the first, nothing was cancelled
	}
	require.Empty(t, g.ended)
	close(g.open)
	require.NoError(t, cmd.Wait())
	require.Equal(t, "content", read(t, cmd.Stdout.(*os.File).Name()))
}

// TestOthersGoOn reads files and lists directories while many wait.
func TestOthersGoOn(t *testing.T) {
	const many = 50
	var parts []part
	for i := range many {
		parts = append(parts, file(fmt.Sprint("slow", i), "slow"))
	}
	g := gated(append(parts, dir("dir"), file("dir/name", ""))...)
	dir := mounted(t, g.layer, Options{})
	read := make(chan error, many)
	for i := range many {
		go func() {
			_, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("slow", i)))
			read <- err
		}()
	}
	for range many {
		receive(t, g.waiting)
	}
	require.Equal(t, []string{"name"}, names(t, filepath.Join(dir, "dir")))
	close(g.open)
	for range many {
		require.NoError(t, receive(t, read))
	}
}

// TestUnmountEndsReads takes the mount away from who waits.
func TestUnmountEndsReads(t *testing.T) {
	needMounts(t)
	g := gated(file("file", "content"))
	dir := t.TempDir()
	server, err := Mount(dir, g.layer, Options{})
	require.NoError(t, err)
	cmd := g.start(t, dir, cached)
	require.NoError(t, server.Unmount())
	require.Error(t, cmd.Wait())
	require.NoError(t, server.Unmount(), "a second time")
	require.Empty(t, names(t, dir))
}

// TestInOrder reads small files in their order, as tar does. Most are in the
// page cache before they are asked for.
func TestInOrder(t *testing.T) {
	const files = 2000
	var parts []part
	for i := range files {
		parts = append(parts, file(fmt.Sprintf("%05d", i), fmt.Sprint("content of ", i)))
	}
	layer := layerOf(parts...)
	var asked atomic.Int32
	layer.before = func(ctx context.Context, _ store.Node, _ int64) error {
		if ctx.Err() == nil {
			asked.Add(1)
		}
		return nil
	}
	server := serving(t, layer, Options{})
	for i, name := range names(t, server.dir) {
		require.Equal(t, fmt.Sprint("content of ", i), read(t, server.dir, name))
		server.conn.ahead.wait()
	}
	require.Less(t, int(asked.Load()), 50)
}

// wait waits until nothing is being read ahead.
func (a *ahead) wait() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.busy {
		a.idle.Wait()
	}
}
