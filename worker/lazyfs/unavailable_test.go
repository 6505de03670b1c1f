package lazyfs

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func isUnmountable(err error) bool {
	return errors.As(err, new(interface {
		error
		Unmountable()
	}))
}

// apart runs f in a mount namespace of its own.
func apart(t *testing.T, f func()) {
	needMounts(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with the goroutine
		if assert.NoError(t, unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS)) &&
			assert.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")) {
			f()
		}
	}()
	<-done
}

func TestWithoutFUSE(t *testing.T) {
	dir := t.TempDir()
	for name, hide := range map[string]func() error{
		"no device": func() error { return unix.Mount("empty", "/dev", "tmpfs", 0, "") },
		"a directory": func() error {
			return errors.Join(unix.Mount("empty", "/dev", "tmpfs", 0, ""), os.Mkdir("/dev/fuse", 0o755))
		},
		"another device": func() error { return unix.Mount("/dev/null", "/dev/fuse", "", unix.MS_BIND, "") },
	} {
		t.Run(name, func(t *testing.T) {
			apart(t, func() {
				assert.NoError(t, hide())
				_, err := Mount(dir, layerOf(), Options{})
				assert.Error(t, err)
				assert.True(t, isUnmountable(err), err)
			})
		})
	}
}

// What says nothing about FUSE may be otherwise the next time.
func TestMountFails(t *testing.T) {
	needMounts(t)
	_, err := Mount(filepath.Join(t.TempDir(), "none"), layerOf(), Options{})
	require.ErrorIs(t, err, unix.ENOENT)
	require.False(t, isUnmountable(err), err)

	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	none := unix.Rlimit{Cur: 0, Max: limit.Max}
	dir := t.TempDir()
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &none))
	_, err = Mount(dir, layerOf(), Options{})
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	require.ErrorIs(t, err, unix.EMFILE)
	require.False(t, isUnmountable(err), err)
}

// A kernel whose protocol is refused stays the same.
func TestProtocolRefused(t *testing.T) {
	needMounts(t)
	dir := t.TempDir()
	device, err := mount(dir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, detach(dir)) })
	defer device.Close()
	files := newFilesystem(layerOf(), Options{})
	refused := make(chan error, 1)
	go func() {
		request := make([]byte, 2*maxRead)
		_, err := device.Read(request)
		if err == nil {
			answer := binary.NativeEndian.AppendUint32(nil, 16)
			answer = binary.NativeEndian.AppendUint32(answer, ^uint32(unix.EPROTO)+1)
			answer = append(answer, request[8:16]...) // of the request that is answered
			_, err = device.Write(answer)
		}
		refused <- err
	}()
	err = files.settle(dir)
	require.NoError(t, <-refused)
	require.Error(t, err)
	require.True(t, isUnmountable(err), err)
}

func TestFusermountRefuses(t *testing.T) {
	_, missing := exec.LookPath("no such program")
	require.True(t, isUnmountable(unavailableIfRefused(missing)))
	require.True(t, isUnmountable(unavailableIfRefused(exec.Command("false").Run())))
	for _, permanent := range []unix.Errno{unix.EACCES, unix.ENOENT, unix.EPERM, unix.ENOSYS} {
		err := &os.PathError{Op: "fork/exec", Path: "/usr/bin/fusermount3", Err: permanent}
		require.True(t, isUnmountable(unavailableIfRefused(err)), err)
	}
	program := filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(program, []byte("of another machine"), 0o755))
	err := exec.Command(program).Run()
	require.ErrorIs(t, err, unix.ENOEXEC)
	require.True(t, isUnmountable(unavailableIfRefused(err)))
	require.False(t, isUnmountable(unavailableIfRefused(exec.Command("sh", "-c", "kill -9 $$").Run())))
	require.False(t, isUnmountable(unavailableIfRefused(unix.EAGAIN)), "no process more")
}
