package harness

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// toolsOf returns a directory with one program, a shell script.
func toolsOf(t *testing.T, name, script string) Tools {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700))
	return Tools(dir)
}

// A registry that is started again in its directory has another port.
func TestRegistryStartsAgain(t *testing.T) {
	dir := t.TempDir()
	for _, port := range []string{"1", "2"} {
		r, err := StartRegistry(t.Context(), toolsOf(t, "docker-registry", "echo listening on 127.0.0.1:"+port+"; exec sleep 1000"), dir)
		require.NoError(t, err)
		require.NoError(t, r.Stop())
		require.Equal(t, "127.0.0.1:"+port, r.Address)
	}
}

// A socket that a killed server has left is not the new one's.
func TestSocketIsLeft(t *testing.T) {
	dir, err := os.MkdirTemp("", "") // the name of a socket has to be short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "stargz.sock")})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	_, _, err = StartSnapshotter(t.Context(), toolsOf(t, "stargz-snapshotter", "exit 3"), dir)
	require.ErrorContains(t, err, "it ended: exit status 3")
}

// A mount that is also somewhere else goes with that.
func TestRemoveAllMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	one, other := filepath.Join(dir, "one"), filepath.Join(dir, "other")
	for _, name := range []string{one, other, filepath.Join(one, "mounted")} {
		require.NoError(t, os.Mkdir(name, 0o700))
	}
	mount := func(source, target, kind string, flags uintptr) {
		require.NoError(t, syscall.Mount(source, target, kind, flags, ""))
		t.Cleanup(func() { _ = syscall.Unmount(target, syscall.MNT_DETACH) })
	}
	mount(one, one, "", syscall.MS_BIND)
	require.NoError(t, syscall.Mount("", one, "", syscall.MS_SHARED, ""))
	mount(one, other, "", syscall.MS_BIND)
	mount("tmpfs", filepath.Join(one, "mounted"), "tmpfs", 0)
	require.NoError(t, RemoveAll(dir))
	require.NoDirExists(t, dir)
}

// A daemon that was never started has ended.
func TestDaemonWithoutProcess(t *testing.T) {
	d := &Daemon{}
	d.Kill()
	require.NoError(t, d.Stop())
}
