package record

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/executor/resources"
	"github.com/moby/buildkit/executor/runcexecutor"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/sys/mountinfo"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// A sandbox runs processes by BuildKit's executor over runc, in a root
// filesystem of two layers and an upper directory.
type sandbox struct {
	t      *testing.T
	inner  executor.Executor
	lower  string // the topmost layer
	base   string
	layers []string // between them
	upper  string
	work   string
	merged string // where the root filesystem is mounted while somebody uses it
	users  int    // of that mount
	out    string // where the profile goes
	plain  bool   // without a recording
	// bindRoot makes a layer the root filesystem by a bind mount.
	bindRoot bool
	binds    []executor.Mount
	meta     executor.Meta
	after    func(time.Duration) <-chan time.Time // never, but for overOnRing

	stdout, stderr output
}

// newSandbox makes a root filesystem of busybox and the workload command. No time
// is ever over in it, unless overOnRing says so. It skips without root, and checks
// at the end that nothing is left.
func newSandbox(t *testing.T) *sandbox {
	t.Helper()
	return newSandboxAt(t, t.TempDir())
}

func newSandboxAt(t *testing.T, dir string) *sandbox {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: runc, overlay mounts and fanotify")
	}
	for _, command := range []string{"runc", "busybox"} {
		if _, err := exec.LookPath(command); err != nil {
			t.Skip("needs " + command)
		}
	}
	s := &sandbox{t: t, after: never, base: dir + "/1/fs", lower: dir + "/2/fs", upper: dir + "/3/fs", work: dir + "/3/work", merged: dir + "/merged", out: dir + "/out"}
	for _, d := range []string{s.upper, s.work, s.merged, s.out, s.base + "/bin", s.base + "/etc", s.base + "/data", s.base + "/tmp", s.base + "/proc", s.lower + "/data"} {
		check(t, os.MkdirAll(d, 0o755))
	}
	check(t, os.Chmod(s.base+"/tmp", 0o1777))
	busybox, _ := exec.LookPath("busybox")
	copyFile(t, busybox, s.base+"/bin/busybox")
	copyFile(t, workloadCommand(t), s.base+"/bin/workload")
	for _, name := range []string{"sh", "cat", "sleep", "rm", "mv", "setsid", "dd", "ln", "su"} {
		check(t, os.Symlink("busybox", s.base+"/bin/"+name))
	}
	s.file("/etc/passwd", "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")
	s.file("/etc/group", "root:x:0:\napp:x:1000:\n")
	monitor, err := resources.NewMonitor()
	check(t, err)
	s.inner, err = runcexecutor.New(runcexecutor.Opt{Root: dir + "/executor", ProcessMode: oci.ProcessSandbox, ResourceMonitor: monitor},
		map[pb.NetMode]network.Provider{pb.NetMode_NONE: network.NewNoneProvider()})
	check(t, err)
	t.Cleanup(func() {
		if left := mountpointsBelow(t, dir); len(left) > 0 {
			t.Errorf("left mounted: %q", left)
		}
	})
	return s
}

func mountpointsBelow(t *testing.T, dir string) []string {
	t.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	check(t, err)
	var points []string
	for _, info := range infos {
		points = append(points, info.Mountpoint)
	}
	return points
}

// file writes a file of the lower layer, and link a symlink.
func (s *sandbox) file(name, content string) {
	s.t.Helper()
	dir := s.base
	if strings.HasPrefix(name, "/data") {
		dir = s.lower
	}
	check(s.t, os.MkdirAll(filepath.Dir(dir+name), 0o755))
	check(s.t, os.WriteFile(dir+name, []byte(content), 0o644))
}

// Mount makes the sandbox the Mountable of the root filesystem. As BuildKit does
// it, the overlay is mounted once, and who asks gets a bind mount.
func (s *sandbox) Mount(context.Context, bool) (executor.MountableRef, error) { return overlay{s}, nil }

type overlay struct{ s *sandbox }

func (o overlay) Mount() ([]mount.Mount, func() error, error) {
	if o.s.bindRoot {
		return b2{bind(o.s.base)}.Mount()
	}
	if o.s.users == 0 {
		layers := strings.Join(slices.Concat([]string{o.s.lower}, o.s.layers, []string{o.s.base}), ":")
		options := []string{"lowerdir=" + layers, "upperdir=" + o.s.upper, "workdir=" + o.s.work, "index=off"}
		if err := mount.All([]mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}, o.s.merged); err != nil {
			return nil, nil, err
		}
	}
	o.s.users++
	mounts, _, err := b2{bind(o.s.merged)}.Mount()
	return mounts, o.release, err
}

func (o overlay) release() error {
	if o.s.users--; o.s.users > 0 {
		return nil
	}
	return mount.Unmount(o.s.merged, 0)
}

func (o overlay) IdentityMapping() *user.IdentityMapping { return nil }

// bind is a Mountable that is a directory.
type bind string

func (b bind) Mount(context.Context, bool) (executor.MountableRef, error) { return b2{b}, nil }

type b2 struct{ dir bind }

func (b b2) Mount() ([]mount.Mount, func() error, error) {
	return []mount.Mount{{Type: "bind", Source: string(b.dir), Options: []string{"rbind"}}}, released, nil
}
func (b b2) IdentityMapping() *user.IdentityMapping { return nil }

// output is safe for concurrent use, which a container's output needs.
type output struct {
	mu sync.Mutex
	bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Buffer.Write(b)
}
func (o *output) Close() error { return nil }

var _ io.WriteCloser = (*output)(nil)

// Commands for processes of a sandbox with onRing.
const (
	ringBell = "echo >/door/bell"
	// knock rings, and waits until the function given to onRing has returned.
	knock = ringBell + "; read x </door/answer"
)

// onRing has f called each time a process of the sandbox rings. Each call that has
// returned sends to the channel. There is also a named pipe, /door/pipe, for the
// processes.
func (s *sandbox) onRing(f func()) <-chan struct{} {
	s.t.Helper()
	door := s.t.TempDir()
	s.binds = append(s.binds, executor.Mount{Src: bind(door), Dest: "/door"})
	pipe := func(name string) *os.File {
		name = filepath.Join(door, name)
		check(s.t, unix.Mkfifo(name, 0o600))
		p, err := os.OpenFile(name, os.O_RDWR, 0) // so that nobody waits for the other end
		check(s.t, err)
		return p
	}
	bell, answer := pipe("bell"), pipe("answer")
	check(s.t, unix.Mkfifo(filepath.Join(door, "pipe"), 0o600))
	called := make(chan struct{}, 10)
	var listening sync.WaitGroup
	listening.Go(func() {
		for rings := bufio.NewScanner(bell); rings.Scan(); {
			f()
			called <- struct{}{}
			if _, err := answer.WriteString("\n"); err != nil {
				s.t.Error(err)
			}
		}
	})
	s.t.Cleanup(func() {
		bell.Close()
		listening.Wait()
		answer.Close()
	})
	return called
}

// overOnRing has a time be over each time a process of the sandbox rings, and
// returns how often it has.
func (s *sandbox) overOnRing(over time.Duration) *atomic.Int32 {
	s.t.Helper()
	tick := make(chan time.Time)
	s.after = func(d time.Duration) <-chan time.Time {
		if d == over {
			return tick
		}
		return never(d)
	}
	rung := &atomic.Int32{}
	s.onRing(func() {
		rung.Add(1)
		select {
		case tick <- time.Now():
		case <-s.t.Context().Done():
		case <-time.After(patience):
			s.t.Errorf("nobody has waited for %v to be over, in %v", over, patience)
		}
	})
	return rung
}

// patience is how long tests wait for what happens at once, but for a slow machine.
const patience = 2 * time.Minute

// await waits until something is sent to a channel.
func await[T any](t testing.TB, c <-chan T, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("%s: not in %v", what, patience)
	}
}

// never is time.After of a clock that stands still.
func never(d time.Duration) <-chan time.Time {
	if d == 0 {
		return time.After(0)
	}
	return nil
}

// awaitIgnored returns when the watch has taken the first event of a file, which
// is ignored from then on.
func (s *sandbox) awaitIgnored(name string) {
	var st unix.Stat_t
	if err := unix.Stat(s.merged+name, &st); err != nil {
		s.t.Error(err)
		return
	}
	mark := fmt.Sprintf("fanotify ino:%x ", st.Ino)
	start := time.Now()
	for !slices.ContainsFunc(fanotifies(), func(marks string) bool { return strings.Contains(marks, mark) }) {
		if time.Since(start) > patience {
			s.t.Errorf("the watch has not ignored %s in %v", name, patience)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// fanotifies are the marks of each group that is open.
func fanotifies() (marks []string) {
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		if target, _ := os.Readlink(fd); target == "anon_inode:[fanotify]" {
			info, _ := os.ReadFile("/proc/self/fdinfo/" + filepath.Base(fd))
			marks = append(marks, string(info))
		}
	}
	return marks
}

// run runs a process and returns what the executor does.
func (s *sandbox) run(opts Options, args ...string) error {
	s.t.Helper()
	return s.runContext(s.t.Context(), opts, args...)
}

func (s *sandbox) runContext(ctx context.Context, opts Options, args ...string) error {
	s.t.Helper()
	check(s.t, os.RemoveAll(s.out)) // each has an output of its own
	check(s.t, os.Mkdir(s.out, 0o755))
	meta := s.meta
	meta.Args, meta.NetMode = args, pb.NetMode_NONE
	meta.Env = append([]string{"PATH=/bin", s.tag()}, meta.Env...)
	if meta.Cwd == "" {
		meta.Cwd = "/"
	}
	mounts, e := s.binds, s.inner
	if !s.plain {
		bound, err := parseOptions(opts.encode())
		check(s.t, err)
		e = &recording{Executor: e, opts: *bound, tracepoints: keepTracepoints, after: s.after}
		mounts = append(slices.Clone(mounts), executor.Mount{Src: bind(s.out), Dest: OutputDir})
	}
	late := fmt.Errorf("%v has not ended in %v", args, patience)
	ctx, cancel := context.WithTimeoutCause(ctx, patience, late)
	defer cancel()
	_, err := e.Run(ctx, "", executor.Mount{Src: s}, mounts, executor.ProcessInfo{Meta: meta, Stdout: &s.stdout, Stderr: &s.stderr}, nil)
	if context.Cause(ctx) == late {
		return late
	}
	return err
}

// record runs a workload and returns what was recorded.
func (s *sandbox) record(opts Options, args ...string) (*profile.Profile, Summary) {
	s.t.Helper()
	opts.IgnoreExit = true
	if err := s.run(opts, args...); err != nil {
		s.t.Fatalf("%v: %v\n%s", args, err, s.stderr.String())
	}
	return s.result()
}

func (s *sandbox) result() (*profile.Profile, Summary) {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.out, ProfileFile))
	check(s.t, err)
	p, err := profile.Decode(data)
	check(s.t, err)
	data, err = os.ReadFile(filepath.Join(s.out, SummaryFile))
	check(s.t, err)
	var sum Summary
	check(s.t, json.Unmarshal(data, &sum))
	return p, sum
}

// paths returns the recorded paths below /data.
func paths(p *profile.Profile) []string {
	var in []string
	for _, f := range p.Files {
		if name, ok := strings.CutPrefix(f.Path, "data/"); ok {
			in = append(in, name)
		}
	}
	return in
}

func wantPaths(t *testing.T, p *profile.Profile, want ...string) {
	t.Helper()
	if got := paths(p); !slices.Equal(got, want) {
		t.Errorf("recorded %q, want %q", got, want)
	}
}

func find(t *testing.T, p *profile.Profile, path string) profile.File {
	t.Helper()
	i := slices.IndexFunc(p.Files, func(f profile.File) bool { return f.Path == path })
	if i < 0 {
		t.Fatalf("%s is not among %d files", path, len(p.Files))
	}
	return p.Files[i]
}

// tag is a variable of the environment that only processes of this sandbox have.
func (s *sandbox) tag() string { return "SANDBOX=" + s.merged }

// processes are those of the sandbox that run.
func (s *sandbox) processes() (running []string) {
	s.t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	check(s.t, err)
	for _, dir := range dirs {
		environment, _ := os.ReadFile(dir + "/environ")
		if slices.Contains(strings.Split(string(environment), "\x00"), s.tag()) {
			line, _ := os.ReadFile(dir + "/cmdline")
			running = append(running, string(line))
		}
	}
	return running
}

// noProcess checks that no process of the sandbox runs.
func (s *sandbox) noProcess() {
	s.t.Helper()
	if running := s.processes(); len(running) > 0 {
		s.t.Errorf("%q still run", running)
	}
}

// binaries is where workloadCommand builds.
var binaries string

var buildWorkload = sync.OnceValues(func() ([]byte, error) {
	build := exec.Command("go", "build", "-o", binaries, "./testdata/workload")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	return build.CombinedOutput()
})

func workloadCommand(t *testing.T) string {
	t.Helper()
	if out, err := buildWorkload(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(binaries, "workload")
}

func TestMain(m *testing.M) {
	var err error
	if binaries, err = os.MkdirTemp("", "record-workload"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(binaries)
	os.Exit(code)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	check(t, err)
	check(t, os.WriteFile(to, data, 0o755))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func released() error { return nil }
