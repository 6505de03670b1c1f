package record

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/executor"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"
)

func TestReads(t *testing.T) {
	for _, test := range []struct {
		name, script string
		want         []string
	}{
		{"read", "cat /data/a", []string{"a"}},
		{"nothing", ":", nil},
		{"child", "(cat /data/a; (cat </data/b))", []string{"a", "b"}},
		{"executed", "/data/program", []string{"program"}},
		{"library", "/data/program /data/a", []string{"a", "program"}},
		{"mapped", "workload mmap /data/a 0 1", []string{"a"}},
		{"symlink", "cat /data/link", []string{"dir/target"}},
		{"hard link", "cat /data/hard; cat /data/link2", []string{"hard", "link2"}},
		{"repeated", "for i in 1 2 3; do cat /data/a; done", []string{"a"}},
		{"deleted afterwards", "cat /data/a; rm /data/a", []string{"a"}},
		{"moved afterwards", "cat /data/a; " + knock + "; mv /data/a /data/z", []string{"a"}},
		{"replaced afterwards", "cat /data/a; echo new >/data/new; mv /data/new /data/a; cat /data/a", []string{"a"}},
		{"changed and read", "echo more >>/data/a; cat /data/a", []string{"a"}},
		{"made here", "echo x >/data/made; cat /data/made; rm /data/made", nil},
		{"not there", "cat /data/missing", nil},
		{"directory", "for f in /data/*; do :; done", nil},
		{"deleted in the image", "cat /data/whiteout", nil},
		{"named pipe", "cat /data/a >/data/pipe & cat /data/pipe; wait", []string{"a"}},
		{"daemon", "(setsid sh -c 'cat /data/a; echo >/data/made' &); while ! cat /data/made; do sleep 0.1; done", []string{"a"}},
		{"everything deleted", "cat /data/a; rm -rf /data /bin /etc", []string{"a"}},
		{"another user", "su app -c 'cat /data/a /data/secret'", []string{"a"}},
		{"another root", "workload chroot /data/dir /target", []string{"dir/target"}},
		{"odd name", "cat '/data/odd (deleted)'", []string{"odd (deleted)"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSandbox(t)
			s.dataFiles()
			s.onRing(func() { s.awaitIgnored("/data/a") })
			p, sum := s.record(Options{}, "sh", "-c", test.script)
			wantPaths(t, p, test.want...)
			if sum.End != EndExit || sum.Overflow || sum.Lost != 0 {
				t.Errorf("%+v", sum)
			}
		})
	}
}

// dataFiles fills /data.
func (s *sandbox) dataFiles() {
	s.t.Helper()
	for _, name := range []string{"a", "b", "unread", "dir/target", "hard", "odd (deleted)"} {
		s.file("/data/"+name, "content of "+name)
	}
	s.file("/data/program", "#!/bin/sh\ncat \"$@\"\n")
	check(s.t, os.Chmod(s.lower+"/data/program", 0o755))
	check(s.t, os.Symlink("dir/target", s.lower+"/data/link"))
	check(s.t, os.Link(s.lower+"/data/hard", s.lower+"/data/link2"))
	s.file("/data/secret", "")
	check(s.t, os.Chmod(s.lower+"/data/secret", 0o600))
	check(s.t, os.WriteFile(s.base+"/data/whiteout", nil, 0o644))
	check(s.t, unix.Mknod(s.lower+"/data/whiteout", unix.S_IFCHR, 0))
	check(s.t, unix.Mknod(s.lower+"/data/pipe", unix.S_IFIFO|0o666, 0))
}

func TestNothingOfMounts(t *testing.T) {
	s := newSandbox(t)
	s.dataFiles()
	mounted := t.TempDir()
	check(t, os.WriteFile(mounted+"/inside", []byte("x"), 0o644))
	s.binds = []executor.Mount{{Src: bind(mounted), Dest: "/mnt"}}
	p, _ := s.record(Options{}, "sh", "-c", "cat /mnt/inside /proc/self/status /data/a; cp /bin/sh /dev/shm/x; cat /dev/shm/x")
	for _, f := range p.Files {
		if !strings.HasPrefix(f.Path, "data/") && !strings.HasPrefix(f.Path, "bin/") && !strings.HasPrefix(f.Path, "etc/") {
			t.Errorf("%s is recorded", f.Path)
		}
	}
	wantPaths(t, p, "a")
}

// The process does not see the output, and what it writes lands in the
// layer it would have landed in.
func TestNoTrace(t *testing.T) {
	listing := map[bool]string{}
	for _, plain := range []bool{true, false} {
		s := newSandbox(t)
		s.plain = plain
		err := s.run(Options{}, "sh", "-c", "set; ls -la /; cat /proc/mounts; echo out >/data/written; exit 7")
		var exit *gatewayapi.ExitError
		if !errors.As(err, &exit) || exit.ExitCode != 7 {
			t.Fatalf("plain %v: %v", plain, err)
		}
		if strings.Contains(s.stdout.String(), OutputDir) {
			t.Errorf("the process sees: %s", s.stdout.String())
		}
		if s.stderr.Len() > 0 {
			t.Errorf("plain %v: stderr is %q", plain, s.stderr.String())
		}
		var names []string
		check(t, filepath.Walk(s.upper, func(name string, info os.FileInfo, err error) error {
			names = append(names, fmt.Sprintf("%s %v", strings.TrimPrefix(name, s.upper), info.Mode()))
			return err
		}))
		listing[plain] = strings.Join(names, "\n")
	}
	if listing[true] != listing[false] {
		t.Errorf("the upper directory holds\n%s\nand with recording\n%s", listing[true], listing[false])
	}
}

// A daemon that is killed while it records has nothing mounted but what BuildKit
// has, which unmounts it at its next start, and no file of its own.
func TestNothingToLeaveBehind(t *testing.T) {
	temp := t.TempDir()
	s := newSandbox(t)
	t.Setenv("TMPDIR", temp)
	var during []string
	looked := s.onRing(func() {
		var err error
		if during, err = mountpoints(s.merged); err != nil {
			t.Error(err)
		}
		if entries, err := os.ReadDir(temp); err != nil || len(entries) > 0 {
			t.Errorf("temporary files: %v, %v", entries, err)
		}
	})
	s.record(Options{}, "sh", "-c", knock)
	await(t, looked, "the process has rung and its mounts were looked at")
	if len(during) != 2 || during[0] != s.merged || filepath.Base(during[1]) != "rootfs" {
		t.Errorf("mounted while recording: %q, want %s and the container's root", during, s.merged)
	}
}

func TestStep(t *testing.T) {
	s := newSandbox(t)
	s.dataFiles()
	// The rules are not for steps.
	asked := false
	s.after = func(time.Duration) <-chan time.Time { asked = true; return nil }
	check(t, s.run(Options{Ready: "."}, "sh", "-c", "cat /data/a; cat /data/b"))
	p, sum := s.result()
	wantPaths(t, p, "a", "b")
	if sum.End != EndExit || asked || s.stdout.String() != "content of acontent of b" || s.stderr.Len() > 0 {
		t.Errorf("%+v, a rule has begun: %v, stdout %q, stderr %q", sum, asked, s.stdout.String(), s.stderr.String())
	}
}

func TestReadonlyRoot(t *testing.T) {
	s := newSandbox(t)
	s.dataFiles()
	s.meta.ReadonlyRootFS = true
	p, _ := s.record(Options{}, "sh", "-c", "cat /data/a; echo x >/data/b && cat /data/unread")
	wantPaths(t, p, "a")
	if !strings.Contains(s.stderr.String(), "Read-only") {
		t.Errorf("stderr is %q", s.stderr.String())
	}
}

func TestUser(t *testing.T) {
	s := newSandbox(t)
	s.dataFiles()
	check(t, os.Chmod(s.lower+"/data/b", 0o600))
	s.meta.User = "app"
	p, sum := s.record(Options{}, "sh", "-c", "cat /data/a; cat /data/b")
	wantPaths(t, p, "a")
	if sum.ExitCode != 1 {
		t.Errorf("%+v", sum)
	}
}

func TestSameProfile(t *testing.T) {
	var first string
	for i := range 5 {
		s := newSandbox(t)
		for n := range 200 {
			s.file(fmt.Sprintf("/data/%d", n), "x")
		}
		s.record(Options{}, "sh", "-c", "for i in 1 2 3 4; do (workload walk /data; echo $i >/tmp/$$.$i; cat /tmp/*) & done; wait")
		data, err := os.ReadFile(filepath.Join(s.out, ProfileFile))
		check(t, err)
		if i > 0 && string(data) != first {
			t.Fatalf("the profile differs: %s", data)
		}
		first = string(data)
	}
}

func TestManyFiles(t *testing.T) {
	count := 100_000
	if testing.Short() {
		count = 10_000
	}
	s := newSandbox(t)
	check(t, mount.All([]mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}, s.lower))
	t.Cleanup(func() { check(t, mount.Unmount(s.lower, 0)) })
	for n := range count {
		s.file(fmt.Sprintf("/data/%d/%d", n/1000, n), "x")
	}
	p, sum := s.record(Options{}, "workload", "walk", "/data")
	if got := len(paths(p)); got != count || sum.Overflow || sum.Lost != 0 {
		t.Errorf("%d of %d files, %+v", got, count, sum)
	}
	t.Log(sum)
}

// A queue that is too small is simulated by the limit that an unlimited one does
// not have.
func TestOverflow(t *testing.T) {
	const limit = "/proc/sys/fs/fanotify/max_queued_events"
	s := newSandbox(t)
	for n := range 100 {
		s.file(fmt.Sprintf("/data/%d", n), "x")
	}
	root, err := openRootfs(t.Context(), s)
	check(t, err)
	defer root.close(t.Context())
	before, err := os.ReadFile(limit)
	check(t, err)
	check(t, os.WriteFile(limit, []byte("10"), 0o644))
	w, err := openWatch(root, 0, nil)
	check(t, errors.Join(err, os.WriteFile(limit, before, 0o644)))
	defer w.close()
	check(t, exec.Command(workloadCommand(t), "walk", root.dir).Run())
	w.begin()
	sum := w.stop()
	sum.End = EndExit // which the watch does not see
	if !sum.Overflow || !sum.Incomplete() || !strings.Contains(sum.String(), "incomplete") {
		t.Errorf("%+v", sum)
	}
}

// A bind mount has the host's superblock: a step runs all the same, a workload
// is not started.
func TestNoOverlay(t *testing.T) {
	s := newSandbox(t)
	s.file("/data/a", "a")
	s.bindRoot = true
	check(t, s.run(Options{}, "cat", "/etc/passwd"))
	p, sum := s.result()
	if len(p.Files) != 0 || !strings.Contains(sum.Reason, "plain directory") || !strings.Contains(s.stdout.String(), "app") {
		t.Errorf("%+v, %+v, %q", p, sum, s.stdout.String())
	}
	if !strings.Contains(s.stderr.String(), "not recorded: "+sum.Reason) {
		t.Errorf("the log says %q", s.stderr.String())
	}
	s.stdout.Reset()
	p, sum = s.record(Options{}, "cat", "/etc/passwd")
	if len(p.Files) != 0 || !strings.Contains(sum.Reason, "plain directory") || !sum.Incomplete() || sum.End != "" || s.stdout.Len() > 0 {
		t.Errorf("%+v, %+v, %q", p, sum, s.stdout.String())
	}
}

// A daemon in a container may have its own root on an overlay, which is not the
// root filesystem of a process: the host is not recorded, and nothing of it is
// deleted.
func TestPlainDirectoryOnOverlay(t *testing.T) {
	s := newSandbox(t)
	s.file("/data/snapshot/a", "a")
	ref, err := s.Mount(t.Context(), false)
	check(t, err)
	_, release, err := ref.Mount()
	check(t, err)
	defer func() { check(t, release()) }()
	check(t, os.WriteFile(filepath.Join(s.upper, "host"), nil, 0o600))

	root := &rootfs{dir: filepath.Join(s.merged, "data/snapshot"), kind: "bind"}
	if layers, err := root.layers(); err == nil || !strings.Contains(err.Error(), "plain directory") {
		t.Errorf("%q, %v", layers, err)
	}
	if err := root.discard(); err == nil {
		t.Error("discarded")
	}
	if _, err := os.Stat(filepath.Join(s.upper, "host")); err != nil {
		t.Error(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	check(t, os.Symlink(s.merged, link))
	if _, err := (&rootfs{dir: link, kind: "bind"}).layers(); err != nil {
		t.Errorf("by a link: %v", err)
	}
}

// The test runs itself as root of a user namespace, which is what a rootless
// daemon is.
func TestRootless(t *testing.T) {
	const inside = "RECORD_TEST_ROOTLESS"
	if os.Getenv(inside) != "" {
		_, err := openEvents("/", unlimited)
		fmt.Println("error:", err)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestRootless$")
	cmd.Env = append(os.Environ(), inside+"=1")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Skip("no user namespaces: ", err)
	}
	if err != nil || !strings.Contains(string(out), "error: the daemon is rootless") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSideBySide(t *testing.T) {
	s := newSandbox(t)
	s.dataFiles()
	other := newSandbox(t)
	other.dataFiles()
	// A daemon has one executor for all. GetResolvConf of BuildKit writes a
	// variable of its package without a lock that several executors share.
	other.inner = s.inner
	// Each reads while the other runs.
	const mine, others = "/between/mine", "/between/others"
	between := t.TempDir()
	check(t, errors.Join(unix.Mkfifo(filepath.Join(between, "mine"), 0o600), unix.Mkfifo(filepath.Join(between, "others"), 0o600)))
	s.binds = []executor.Mount{{Src: bind(between), Dest: "/between"}}
	other.binds = s.binds
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := other.run(Options{}, "sh", "-c", "cat /data/b; echo >"+others+"; read x <"+mine+"; cat /data/unread"); err != nil {
			t.Error(err)
		}
	})
	p, _ := s.record(Options{}, "sh", "-c", "read x <"+others+"; cat /data/a; echo >"+mine)
	wg.Wait()
	wantPaths(t, p, "a")
	p, _ = other.result()
	wantPaths(t, p, "b", "unread")
}

// TestUnmountsAreNotBusy: an event holds the mount through which its file was
// opened until the daemon takes it, and a step that may unmount would fail.
func TestUnmountsAreNotBusy(t *testing.T) {
	s := newSandbox(t)
	s.dataFiles()
	s.meta.SecurityMode = pb.SecurityMode_INSECURE
	if err := s.run(Options{}, "sh", "-c", "cat /data/a"); err != nil {
		t.Fatal(err)
	}
	p, sum := s.result()
	if len(p.Files) > 0 || !sum.Incomplete() || !strings.Contains(sum.Reason, "security=insecure") {
		t.Errorf("%+v, %+v", p, sum)
	}
	if !strings.Contains(s.stdout.String(), "content of a") || !strings.Contains(s.stderr.String(), "security=insecure") {
		t.Errorf("stdout %q, stderr %q", s.stdout.String(), s.stderr.String())
	}
}

// A queue that grows faster than the daemon takes events is given up.
func TestQueueIsBounded(t *testing.T) {
	s := newSandbox(t)
	here, err := openRootfs(t.Context(), s)
	check(t, err)
	defer here.close(t.Context())
	w, err := openWatch(here, unlimited, nil)
	check(t, err)
	defer w.close()
	if n := w.events.queued(); n != 0 {
		t.Fatalf("%d bytes of events in an empty queue", n)
	}
	for _, name := range []string{"/bin/busybox", "/etc/passwd"} {
		fd, err := unix.Open(s.merged+name, unix.O_RDONLY, 0)
		check(t, err)
		unix.Close(fd)
	}
	if n := w.events.queued(); n != 2*24 {
		t.Fatalf("%d bytes of two events", n)
	}
	w.maxQueued = 24
	w.begin()
	if sum := w.stop(); !sum.Overflow {
		t.Errorf("%+v", sum)
	}
}
