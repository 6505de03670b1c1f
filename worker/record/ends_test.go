package record

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/executor"
)

func TestEnds(t *testing.T) {
	const daemon = "(setsid sh -c '(sleep 4711 & echo >/door/pipe; exec sleep 4711) &'); read x </door/pipe; "
	const stubborn = "(setsid workload stubborn >/door/pipe &); read x </door/pipe; "
	for _, test := range []struct {
		name string
		opts Options
		over time.Duration // when the workload rings
		args []string
		end  End
		want []string
	}{
		{"exit", Options{}, 0, []string{"sh", "-c", "cat /data/a; exit 3"}, EndExit, []string{"a"}},
		{"crash", Options{}, 0, []string{"workload", "crash"}, EndExit, nil},
		// Whatever was read last, it was longer ago.
		{"idle", Options{Idle: 1}, 1, []string{"sh", "-c", "cat /data/a; " + ringBell + "; sleep 4711"}, EndIdle, []string{"a"}},
		{"period", Options{Period: time.Hour, Idle: -1}, time.Hour, []string{"sh", "-c", "cat /data/a; " + ringBell + "; sleep 4711; cat /data/b"}, EndPeriod, []string{"a"}},
		{"ready", Options{Ready: "^listening on [0-9]+$"}, 0, []string{"sh", "-c", "cat /data/a; echo; echo listening on 80; sleep 4711; cat /data/b"}, EndReady, []string{"a"}},
		{"ready on stderr", Options{Ready: "up"}, 0, []string{"sh", "-c", "printf 'is u' >&2; printf p >&2; sleep 4711"}, EndReady, nil},
		{"ignores TERM", Options{Ready: "stubborn", Grace: time.Hour}, time.Hour, []string{"workload", "stubborn"}, EndReady, nil},
		{"ends by TERM", Options{Ready: "polite"}, 0, []string{"workload", "polite"}, EndReady, nil},
		{"daemons", Options{Ready: "up"}, 0, []string{"sh", "-c", daemon + "cat /data/a; echo up; sleep 4711"}, EndReady, []string{"a"}},
		{"stubborn daemons", Options{Ready: "stubborn", Grace: time.Hour}, time.Hour, []string{"sh", "-c", stubborn + stubborn + "cat /data/a; exec workload stubborn"}, EndReady, []string{"a"}},
		{"daemons left behind", Options{}, 0, []string{"sh", "-c", daemon + "cat /data/a"}, EndExit, []string{"a"}},
		{"full disk", Options{}, 0, []string{"sh", "-c", "cat /data/a; dd if=/dev/zero of=/dev/shm/fill bs=1M; cat /data/b"}, EndExit, []string{"a", "b"}},
		{"no such binary", Options{}, 0, []string{"/bin/missing"}, EndStart, nil},
		{"not executable", Options{}, 0, []string{"/data/a"}, EndStart, nil},
		{"another platform", Options{}, 0, []string{"/data/alien"}, EndStart, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSandbox(t)
			rung := s.overOnRing(test.over)
			s.dataFiles()
			s.file("/data/late", "")
			s.file("/data/alien", "\x7fELF nobody's")
			check(t, os.Chmod(s.lower+"/data/alien", 0o755))
			p, sum := s.record(test.opts, test.args...)
			s.noProcess()
			if sum.End != test.end {
				t.Errorf("ended by %s, want %s", sum.End, test.end)
			}
			if n := rung.Load(); (n > 0) != (test.over > 0) {
				t.Errorf("the workload rang %d times", n)
			}
			wantPaths(t, p, test.want...)
			if (test.end == EndStart) != (sum.Reason != "") || (test.end == EndStart) != (len(p.Files) == 0) {
				t.Errorf("%+v with %d files", sum, len(p.Files))
			}
			if want := sum.String(); !strings.Contains(s.stderr.String(), want) {
				t.Errorf("stderr is %q without %q", s.stderr.String(), want)
			}
			t.Log(sum)
		})
	}
}

// A workload that fills the disk is stopped before, or right after, even one that
// does not stop by itself; what it read up to then counts.
func TestFullDisk(t *testing.T) {
	for _, test := range []struct{ name, script string }{
		{"once", "cat /data/a; dd if=/dev/zero of=/fill bs=1M; sleep 4711"},
		{"again and again", "cat /data/a; trap : TERM; i=0; while :; do i=$((i+1)); dd if=/dev/zero of=/fill$i bs=64k count=1000; done"},
		{"many files", "cat /data/a; workload fill /files; sleep 4711"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSandbox(t)
			s.dataFiles()
			s.smallDisk()
			p, sum := s.record(Options{}, "sh", "-c", test.script)
			wantPaths(t, p, "a")
			if sum.End != EndDisk || !sum.Incomplete() || !strings.Contains(s.stderr.String(), "disk") {
				t.Errorf("%+v, stderr %q", sum, s.stderr.String())
			}
			s.noProcess()
			if left, err := os.ReadDir(s.upper); err != nil || len(left) > 0 {
				t.Errorf("left on the disk: %v, %v", left, err)
			}
		})
	}
}

// smallDisk gives what the process writes a disk of its own.
func (s *sandbox) smallDisk() {
	s.t.Helper()
	disk := filepath.Dir(s.upper)
	check(s.t, mount.All([]mount.Mount{{Type: "tmpfs", Source: "tmpfs", Options: []string{"size=200m", "nr_inodes=0"}}}, disk))
	s.t.Cleanup(func() { check(s.t, mount.Unmount(disk, 0)) })
	check(s.t, errors.Join(os.Mkdir(s.upper, 0o755), os.Mkdir(s.work, 0o755)))
}

// A workload that is cut is run once more. Each run leaves a mark in a directory
// of the host, for the next to see; what it wrote elsewhere is gone.
func TestSecondRun(t *testing.T) {
	const period, idle = 2 * time.Hour, time.Hour
	const endless = ringBell + "; sleep 4711" // its files are new: it is not idle for an hour
	for _, test := range []struct {
		name, second string
		end          End
		cut          bool
		incomplete   bool
		want         []string
	}{
		{"that ends", "cat /data/b", EndExit, false, false, []string{"b"}},
		{"that is cut", "cat /data/b; " + endless, EndPeriod, true, false, []string{"a", "b"}},
		{"that fails", "cat /data/b; exit 3", EndExit, false, false, []string{"b"}},
		{"that fills the disk", "cat /data/b; dd if=/dev/zero of=/fill bs=1M; sleep 4711", EndDisk, false, true, []string{"a", "b"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSandbox(t)
			s.overOnRing(period)
			s.dataFiles()
			s.smallDisk()
			marks := t.TempDir()
			s.binds = append(s.binds, executor.Mount{Src: bind(marks), Dest: "/marks"})
			script := "if [ ! -f /marks/1 ]; then : >/marks/1; cat /data/a; : >/left; " + endless + "; fi\n" +
				": >/marks/2; [ ! -f /left ] || : >/marks/3\n" + test.second
			p, sum := s.record(Options{Period: period, Idle: idle}, "sh", "-c", script)
			wantPaths(t, p, test.want...)
			if sum.End != test.end || sum.Cut != test.cut || sum.Incomplete() != test.incomplete {
				t.Errorf("%+v", sum)
			}
			if !strings.Contains(s.stderr.String(), "run once more") {
				t.Errorf("stderr is %q", s.stderr.String())
			}
			if runs, err := os.ReadDir(marks); err != nil || len(runs) != 2 {
				t.Errorf("marks %v, %v, want 1 and 2", runs, err)
			}
			s.noProcess()
			if left, err := os.ReadDir(s.upper); err != nil || len(left) > 0 {
				t.Errorf("left on the disk: %v, %v", left, err)
			}
		})
	}
}

// What the first run has lost is missing where its profile counts.
func TestLossesOfFirstRun(t *testing.T) {
	first, second := &profile.Profile{Files: []profile.File{{Path: "data/a"}}}, &profile.Profile{Files: []profile.File{{Path: "data/b"}}}
	for _, test := range []struct {
		name       string
		s1, s2     Summary
		incomplete bool
		ranges     bool
		want       []string
	}{
		{"and the second ends", Summary{Cut: true, Lost: 1}, Summary{End: EndExit, Ranges: true}, false, true, []string{"b"}},
		{"and the second is cut", Summary{Cut: true, Lost: 1}, Summary{End: EndPeriod, Cut: true, Ranges: true}, true, false, []string{"a", "b"}},
		{"with an overflow", Summary{Cut: true, Overflow: true, Ranges: true}, Summary{End: EndPeriod, Cut: true, Ranges: true}, true, true, []string{"a", "b"}},
		{"none", Summary{Cut: true, Ranges: true}, Summary{End: EndPeriod, Cut: true, Ranges: true}, false, true, []string{"a", "b"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, s := ofRuns(first, test.s1, second, test.s2)
			wantPaths(t, p, test.want...)
			if s.Incomplete() != test.incomplete || s.Ranges != test.ranges {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestGracefulEnd(t *testing.T) {
	s := newSandbox(t)
	marks := t.TempDir()
	s.binds = []executor.Mount{{Src: bind(marks), Dest: "/marks"}}
	s.record(Options{Ready: "polite"}, "workload", "polite")
	if _, err := os.Stat(marks + "/bye"); err != nil {
		t.Error(err)
	}
}

// The log has the output of a workload that failed, and of no other.
func TestOutput(t *testing.T) {
	for _, test := range []struct {
		name string
		opts Options
		args []string
		want string
	}{
		{"ended well", Options{}, []string{"sh", "-c", "echo out; echo err >&2"}, ""},
		{"failed", Options{}, []string{"sh", "-c", "echo out; exit 3"}, "its output:\nout\n"},
		{"failed with an error", Options{}, []string{"sh", "-c", "echo err >&2; exit 3"}, "its output:\nerr\n"},
		{"failed without a word", Options{}, []string{"sh", "-c", "exit 3"}, ""},
		{"failed after much", Options{}, []string{"sh", "-c", "dd if=/dev/zero bs=1M count=1 2>/dev/null; echo the reason; exit 3"},
			"the end of its output:\n" + strings.Repeat("\x00", maxTail-len("the reason\n")) + "the reason\n"},
		{"was stopped", Options{Ready: "out"}, []string{"sh", "-c", "trap 'exit 3' TERM; echo out; while :; do sleep 0.1; done"}, ""},
		{"was killed", Options{Ready: "polite"}, []string{"sh", "-c", "trap '' TERM; echo polite; sleep 4711"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSandbox(t)
			_, sum := s.record(test.opts, test.args...)
			if want := test.want + sum.String() + "\n"; s.stdout.Len() > 0 || s.stderr.String() != want {
				t.Errorf("stdout %.80q, stderr %.80q, want %.80q", s.stdout.String(), s.stderr.String(), want)
			}
		})
	}
}

func TestCancelledBuild(t *testing.T) {
	s := newSandbox(t)
	ctx, cancel := context.WithCancel(t.Context())
	canceled := s.onRing(func() {
		if len(s.processes()) == 0 {
			t.Error("no process of the sandbox is found")
		}
		cancel()
	})
	err := s.runContext(ctx, Options{IgnoreExit: true}, "sh", "-c", ringBell+"; sleep 4711")
	await(t, canceled, "the process has rung and was cancelled")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	s.noProcess()
	if _, err := os.Stat(filepath.Join(s.out, ProfileFile)); err == nil {
		t.Error("a profile was written")
	}
}
