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
	const long = -1
	for _, test := range []struct {
		name string
		opts Options
		args []string
		end  End
		want []string
	}{
		{"exit", Options{}, []string{"sh", "-c", "cat /data/a; exit 3"}, EndExit, []string{"a"}},
		{"crash", Options{}, []string{"workload", "crash"}, EndExit, nil},
		{"idle", Options{Period: long, Idle: 2 * time.Second}, []string{"sh", "-c", "cat /data/a; sleep 4711"}, EndIdle, []string{"a"}},
		{"period", Options{Period: 2 * time.Second, Idle: long}, []string{"sh", "-c", "cat /data/a; sleep 4711; cat /data/b"}, EndPeriod, []string{"a"}},
		{"ready", Options{Period: long, Idle: long, Ready: "^listening on [0-9]+$"}, []string{"sh", "-c", "cat /data/a; echo; echo listening on 80; sleep 4711; cat /data/b"}, EndReady, []string{"a"}},
		{"ready on stderr", Options{Period: long, Idle: long, Ready: "up"}, []string{"sh", "-c", "printf 'is u' >&2; sleep 0.1; printf p >&2; sleep 4711"}, EndReady, nil},
		{"ignores TERM", Options{Period: long, Idle: long, Ready: "up", Grace: 300 * time.Millisecond}, []string{"sh", "-c", "echo up; exec workload stubborn 4711"}, EndReady, nil},
		{"ends by TERM", Options{Period: long, Idle: long, Ready: "polite", Grace: long}, []string{"workload", "polite", "4711"}, EndReady, nil},
		{"daemons", Options{Period: long, Idle: long, Ready: "up"}, []string{"sh", "-c", "(setsid sh -c '(sleep 4711 & sleep 4711) &' ); cat /data/a; echo up; sleep 4711"}, EndReady, []string{"a"}},
		{"stubborn daemons", Options{Period: long, Idle: long, Ready: "up", Grace: 300 * time.Millisecond}, []string{"sh", "-c", "(setsid workload stubborn 4711 &); (setsid workload stubborn 4711 &); cat /data/a; echo up; exec workload stubborn 4711"}, EndReady, []string{"a"}},
		{"daemons left behind", Options{}, []string{"sh", "-c", "(setsid sh -c '(sleep 4711 & sleep 4711) &' ); cat /data/a"}, EndExit, []string{"a"}},
		{"full disk", Options{}, []string{"sh", "-c", "cat /data/a; dd if=/dev/zero of=/dev/shm/fill bs=1M; cat /data/b"}, EndExit, []string{"a", "b"}},
		{"no such binary", Options{}, []string{"/bin/missing"}, EndStart, nil},
		{"not executable", Options{}, []string{"/data/a"}, EndStart, nil},
		{"another platform", Options{}, []string{"/data/alien"}, EndStart, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSandbox(t)
			s.dataFiles()
			s.file("/data/late", "")
			s.file("/data/alien", "\x7fELF nobody's")
			check(t, os.Chmod(s.lower+"/data/alien", 0o755))
			var p *profile.Profile
			var sum Summary
			within(t, time.Minute, func() { p, sum = s.record(test.opts, test.args...) })
			noProcess(t, "4711")
			if sum.End != test.end {
				t.Errorf("ended by %s, want %s", sum.End, test.end)
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
			var p *profile.Profile
			var sum Summary
			within(t, time.Minute, func() {
				p, sum = s.record(Options{Period: -1, Idle: -1, Grace: time.Hour}, "sh", "-c", test.script)
			})
			wantPaths(t, p, "a")
			if sum.End != EndDisk || !sum.Incomplete() || !strings.Contains(s.stderr.String(), "disk") {
				t.Errorf("%+v, stderr %q", sum, s.stderr.String())
			}
			noProcess(t, "4711")
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
	const endless = "while :; do i=$((i+1)); : >/new$i; sleep 0.1; done"
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
			s.dataFiles()
			s.smallDisk()
			marks := t.TempDir()
			s.binds = []executor.Mount{{Src: bind(marks), Dest: "/marks"}}
			script := "if [ ! -f /marks/1 ]; then : >/marks/1; cat /data/a; : >/left; " + endless + "; fi\n" +
				": >/marks/2; [ ! -f /left ] || : >/marks/3\n" + test.second
			p, sum := s.record(Options{Period: 3 * time.Second, Idle: 2900 * time.Millisecond}, "sh", "-c", script)
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
			noProcess(t, "4711")
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
	s.record(Options{Period: -1, Idle: -1, Ready: "polite"}, "workload", "polite")
	if _, err := os.Stat(marks + "/bye"); err != nil {
		t.Error(err)
	}
}

// The log has the output of a workload that failed, and of no other.
func TestOutput(t *testing.T) {
	const long = -1
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
		{"was stopped", Options{Period: long, Idle: long, Ready: "out"}, []string{"sh", "-c", "trap 'exit 3' TERM; echo out; while :; do sleep 0.1; done"}, ""},
		{"was killed", Options{Period: long, Idle: long, Ready: "polite", Grace: time.Nanosecond}, []string{"sh", "-c", "trap '' TERM; echo polite; sleep 4711"}, ""},
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
	canceled := s.onKnock(cancel)
	err := s.runContext(ctx, Options{Period: -1, Idle: -1, IgnoreExit: true}, "sh", "-c", knock+"; sleep 4711")
	<-canceled
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	noProcess(t, "4711")
	if _, err := os.Stat(filepath.Join(s.out, ProfileFile)); err == nil {
		t.Error("a profile was written")
	}
}
