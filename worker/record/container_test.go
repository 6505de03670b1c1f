package record

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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

	stdout, stderr output
}

// newSandbox makes a root filesystem of busybox and the workload command. It
// skips without root, and checks at the end that nothing is left.
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
	s := &sandbox{t: t, base: dir + "/1/fs", lower: dir + "/2/fs", upper: dir + "/3/fs", work: dir + "/3/work", merged: dir + "/merged", out: dir + "/out"}
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

// knock is a command that waits until the function given to onKnock has returned.
const knock = "echo >/door/knocker; while [ -p /door/knocker ]; do sleep 0.1; done"

// onKnock has f called while a process of the sandbox runs knock, and closes the
// channel that it returns when f has returned.
func (s *sandbox) onKnock(f func()) <-chan struct{} {
	s.t.Helper()
	door := s.t.TempDir()
	knocker := filepath.Join(door, "knocker")
	check(s.t, unix.Mkfifo(knocker, 0o600))
	s.binds = append(s.binds, executor.Mount{Src: bind(door), Dest: "/door"})
	called := make(chan struct{})
	go func() {
		defer close(called)
		if _, err := os.ReadFile(knocker); err != nil {
			s.t.Error(err)
		}
		f()
		if err := os.Remove(knocker); err != nil {
			s.t.Error(err)
		}
	}()
	return called
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
	meta.Env = append([]string{"PATH=/bin"}, meta.Env...)
	if meta.Cwd == "" {
		meta.Cwd = "/"
	}
	mounts, e := s.binds, s.inner
	if !s.plain {
		bound, err := parseOptions(opts.encode())
		check(s.t, err)
		e = &recording{Executor: e, opts: *bound, tracepoints: keepTracepoints}
		mounts = append(slices.Clone(mounts), executor.Mount{Src: bind(s.out), Dest: OutputDir})
	}
	_, err := e.Run(ctx, "", executor.Mount{Src: s}, mounts, executor.ProcessInfo{Meta: meta, Stdout: &s.stdout, Stderr: &s.stderr}, nil)
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

// noProcess checks that no process with this argument runs.
func noProcess(t *testing.T, argument string) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	check(t, err)
	for _, name := range lines {
		line, _ := os.ReadFile(name)
		if slices.Contains(strings.Split(string(line), "\x00"), argument) {
			t.Errorf("%s still runs: %q", name, line)
		}
	}
}

// within is for what would take forever otherwise: the limit is no measure.
func within(t *testing.T, limit time.Duration, do func()) {
	t.Helper()
	begin := time.Now()
	do()
	if took := time.Since(begin); took > limit {
		t.Errorf("took %v, more than %v", took, limit)
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
