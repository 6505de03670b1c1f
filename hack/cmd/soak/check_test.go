package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// control answers what the checks ask a daemon for.
type control struct {
	controlapi.UnimplementedControlServer
	records []*controlapi.UsageRecord
}

func (c *control) DiskUsage(context.Context, *controlapi.DiskUsageRequest) (*controlapi.DiskUsageResponse, error) {
	return &controlapi.DiskUsageResponse{Record: c.records}, nil
}

func (*control) Prune(*controlapi.PruneRequest, grpc.ServerStreamingServer[controlapi.UsageRecord]) error {
	return nil
}

func (*control) ListenBuildHistory(*controlapi.BuildHistoryRequest, grpc.ServerStreamingServer[controlapi.BuildHistoryEvent]) error {
	return nil
}

// fakeDaemon has a cache of 3 MiB in order.
func fakeDaemon(t *testing.T) (*daemon, *control) {
	dir := t.TempDir()
	d := &daemon{name: "fake", snapshotter: "fake", root: filepath.Join(dir, "root"), Daemon: &harness.Daemon{Dir: dir}}
	for _, dir := range []string{d.Temp(), d.root, filepath.Join(d.worker(), "snapshots/snapshotter")} {
		require.NoError(t, os.MkdirAll(dir, 0o700))
	}
	write(t, 3<<20, d.worker(), "snapshots/snapshotter/snapshots/1/fs/file")

	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	require.NoError(t, err)
	srv, c := grpc.NewServer(), &control{records: []*controlapi.UsageRecord{{ID: "record", Size: 3 << 20}}}
	controlapi.RegisterControlServer(srv, c)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	d.client, err = client.New(t.Context(), "unix://"+l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.client.Close() })

	records, err := bolt.Open(filepath.Join(d.worker(), "metadata_v2.db"), 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, records.Update(func(tx *bolt.Tx) error {
		main, err := tx.CreateBucket([]byte("_main"))
		if err == nil {
			_, err = main.CreateBucket([]byte("record"))
		}
		return err
	}))
	require.NoError(t, records.Close())
	lease(t, d, "record")
	return d, c
}

func write(t *testing.T, size int, path ...string) {
	file := filepath.Join(path...)
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
	require.NoError(t, os.WriteFile(file, make([]byte, size), 0o600))
}

func lease(t *testing.T, d *daemon, id string) {
	db, err := bolt.Open(filepath.Join(d.worker(), "containerdmeta.db"), 0o600, nil)
	require.NoError(t, err)
	defer db.Close()
	_, err = ctdmetadata.NewLeaseManager(ctdmetadata.NewDB(db, nil, nil)).
		Create(namespaces.WithNamespace(t.Context(), "buildkit"), leases.WithID(id))
	require.NoError(t, err)
}

func mount(t *testing.T, dir, kind, data string) {
	require.NoError(t, os.MkdirAll(dir, 0o700))
	require.NoError(t, syscall.Mount("test", dir, kind, 0, data))
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}

// Each check finds what it looks for.
func TestChecks(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	running := func(d *daemon) error { return d.checkRunning(t.Context()) }
	stopped := (*daemon).checkStopped
	for name, c := range map[string]struct {
		check func(*daemon) error
		leave func(*testing.T, *daemon, *control)
		want  string
	}{
		"a file": {running, func(t *testing.T, d *daemon, _ *control) {
			write(t, 3<<19, d.worker(), "content/blobs/sha256/blob")
		}, "du says 3145728 bytes, the disk has"},
		"a record without files": {running, func(_ *testing.T, _ *daemon, c *control) {
			c.records = append(c.records, &controlapi.UsageRecord{ID: "more", Size: 3 << 19})
		}, "du says 4718592 bytes, the disk has"},
		"a record in use": {running, func(_ *testing.T, _ *daemon, c *control) {
			c.records[0].InUse = true
		}, "in use, while nobody builds: record"},
		"a mount": {running, func(t *testing.T, d *daemon, _ *control) {
			mount(t, filepath.Join(d.Temp(), "mount"), "tmpfs", "")
		}, "mounted, while nobody builds"},
		"a dead mount": {running, func(t *testing.T, d *daemon, _ *control) {
			fd, err := syscall.Open("/dev/fuse", syscall.O_RDWR, 0)
			require.NoError(t, err)
			mount(t, filepath.Join(d.worker(), "snapshots/snapshotter/snapshots/2/fs"), "fuse", fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))
			require.NoError(t, syscall.Close(fd))
		}, "a dead mount"},
		"a process": {running, leaveProcess, "runs, while nobody builds"},
		"a mount of one that ended": {stopped, func(t *testing.T, d *daemon, _ *control) {
			mount(t, filepath.Join(d.worker(), "snapshots/snapshotter/snapshots/2/fs"), "tmpfs", "")
		}, "mounts of a daemon that has ended"},
		"an ingest": {stopped, func(t *testing.T, d *daemon, _ *control) {
			write(t, 1, d.worker(), "content/ingest/1/data")
		}, "content/ingest/1/data"},
		"a container": {stopped, func(t *testing.T, d *daemon, _ *control) {
			write(t, 1, d.worker(), "executor/1/config.json")
		}, "executor/1/config.json"},
		"a temporary file": {stopped, func(t *testing.T, d *daemon, _ *control) {
			write(t, 1, d.Temp(), "file")
		}, "a temporary file of a daemon that has ended"},
		"a lease": {stopped, func(t *testing.T, d *daemon, _ *control) {
			lease(t, d, "another")
		}, "a lease that nobody owns: another"},
	} {
		t.Run(name, func(t *testing.T) {
			d, control := fakeDaemon(t)
			require.NoError(t, running(d))
			require.NoError(t, stopped(d))
			c.leave(t, d, control)
			require.ErrorContains(t, c.check(d), c.want)
		})
	}
}

// leaveProcess starts one that sees a mount below the root, in a mount namespace of
// its own.
func leaveProcess(t *testing.T, d *daemon, _ *control) {
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$0" "$0" && echo ready && exec sleep 600`, d.worker())
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready", strings.TrimSpace(line))
}
