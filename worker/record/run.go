package record

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
)

// A run is one marked process.
type run struct {
	inner   executor.Executor
	id      string
	mounts  []executor.Mount
	process executor.ProcessInfo
	opts    Options
	points  []tracepoint
	after   func(time.Duration) <-chan time.Time
}

func (r run) record(ctx context.Context, root executor.Mount, output executor.Mountable, started chan<- struct{}) (resourcestypes.Recorder, error) {
	begin := time.Now()
	recorder, p, s, err := r.once(ctx, root, started)
	if err == nil && s.Cut {
		r.say(fmt.Sprintf("it still read new files after %v: it is run once more, now that its files are cached", r.opts.Period))
		recorder, p, s, err = r.again(ctx, root, p, s)
	}
	if err != nil {
		return recorder, err
	}
	s.Began, s.Seconds = begin, time.Since(begin).Seconds()
	s.count(p)
	return recorder, r.report(ctx, output, p, s)
}

// again runs a workload that was cut, which may be due to a slow disk or
// registry: its files are at hand by now. If it gets to its end, the profile is
// the one of a builder that had the files in the first place. Otherwise the
// first run counts as well.
func (r run) again(ctx context.Context, root executor.Mount, p1 *profile.Profile, s1 Summary) (resourcestypes.Recorder, *profile.Profile, Summary, error) {
	recorder, p2, s2, err := r.once(ctx, root, nil)
	p, s := ofRuns(p1, s1, p2, s2)
	return recorder, p, s, err
}

// ofRuns returns the recording of two runs.
func ofRuns(p1 *profile.Profile, s1 Summary, p2 *profile.Profile, s2 Summary) (*profile.Profile, Summary) {
	if !s2.Cut && !s2.Incomplete() {
		return p2, s2
	}
	s2.Overflow, s2.Lost = s1.Overflow || s2.Overflow, s1.Lost+s2.Lost
	s2.Ranges = s1.Ranges && s2.Ranges
	return profile.Merge(p1, p2), s2
}

// once runs the process. Nothing of what a workload wrote is left.
func (r run) once(ctx context.Context, root executor.Mount, started chan<- struct{}) (recorder resourcestypes.Recorder, p *profile.Profile, s Summary, err error) {
	p = &profile.Profile{}
	here, err := openRootfs(ctx, root.Src)
	if err != nil {
		return nil, p, s, fmt.Errorf("record: root filesystem: %w", err)
	}
	defer here.close(ctx)
	if !r.opts.IgnoreExit && r.process.Meta.SecurityMode == pb.SecurityMode_INSECURE {
		recorder, s, err = r.unrecorded(ctx, root, started, errors.New("with --security=insecure it may unmount filesystems, which a recording keeps busy"))
		return recorder, p, s, err
	}
	w, err := openWatch(here, unlimited, r.points)
	if err != nil {
		recorder, s, err = r.unrecorded(ctx, root, started, err)
		return recorder, p, s, err
	}
	defer w.close()
	do := r.step
	if r.opts.IgnoreExit {
		do = r.workload
	}
	if recorder, s, err = do(ctx, w, root, started); err != nil {
		return recorder, p, s, err
	}
	if w.err == nil && s.End != EndStart {
		p = w.profile()
	}
	if r.opts.IgnoreExit {
		if err := here.discard(); err != nil {
			return recorder, p, s, fmt.Errorf("record: what the workload wrote: %w", err)
		}
	}
	return recorder, p, s, nil
}

// report writes the output. The vertex's log tells of a workload how it went, and
// of a step what went wrong.
func (r run) report(ctx context.Context, output executor.Mountable, p *profile.Profile, s Summary) error {
	if r.opts.IgnoreExit || s.Incomplete() {
		r.say(s.String())
	}
	return write(ctx, output, p, s)
}

// say writes a line into the vertex's log.
func (r run) say(line string) {
	if r.process.Stderr != nil {
		fmt.Fprintln(r.process.Stderr, line)
	}
}

// unrecorded is for systems that cannot record. A step of a build goes on
// without; a workload has nothing else to do. The summary says that there is no
// profile.
func (r run) unrecorded(ctx context.Context, root executor.Mount, started chan<- struct{}, reason error) (recorder resourcestypes.Recorder, s Summary, err error) {
	if !r.opts.IgnoreExit {
		recorder, err = r.inner.Run(ctx, r.id, root, r.mounts, r.process, started)
	}
	return recorder, Summary{Reason: reason.Error()}, err
}

// step runs a process that is recorded in passing.
func (r run) step(ctx context.Context, w *watch, root executor.Mount, started chan<- struct{}) (resourcestypes.Recorder, Summary, error) {
	p := r.start(ctx, w, root, started)
	<-p.exited
	s := w.stop()
	s.End = EndExit
	return p.recorder, s, p.err
}

// workload runs a process until a rule ends it. Nobody asked for its output, which
// is in the vertex's log only where it tells why the process failed.
func (r run) workload(ctx context.Context, w *watch, root executor.Mount, started chan<- struct{}) (resourcestypes.Recorder, Summary, error) {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := make(chan struct{})
	matched := sync.OnceFunc(func() { close(ready) })
	output := &tail{}
	stdout := &tap{tail: output, pattern: r.opts.ready, matched: matched}
	stderr := &tap{tail: output, pattern: r.opts.ready, matched: matched}
	signals := make(chan syscall.Signal)
	tapped := r
	tapped.process.Stdout, tapped.process.Stderr, tapped.process.Signal = stdout, stderr, signals

	p := tapped.start(inner, w, root, started)
	end := r.wait(w, signals, ready, p.exited)
	ended := time.Now()
	s := w.stop()
	if end != EndExit {
		grace := r.opts.Grace
		if end == EndDisk {
			grace = 0
		}
		r.stop(int(w.init.Load()), grace, signals, p.exited, cancel)
	}
	<-p.exited
	if ctx.Err() != nil && p.err != nil {
		return p.recorder, s, p.err
	}
	s.End = end
	switch {
	case s.Reason != "": // of the watch
	case end == EndDisk:
		s.Reason = "what it wrote left too little of the builder's disk"
	default:
		s.Cut = end == EndPeriod && r.opts.busy(w, ended)
	}
	err := s.judge(p.err, stderr.last(), stdout.last())
	if quoted := output.quote(); s.ExitCode != 0 && quoted != "" {
		r.say(quoted)
	}
	return p.recorder, s, err
}

// A started process. The other fields are set once exited is closed.
type started struct {
	exited   chan struct{}
	recorder resourcestypes.Recorder
	err      error
}

// start runs the process and begins the watch when the executor has it started.
func (r run) start(ctx context.Context, w *watch, root executor.Mount, outer chan<- struct{}) *started {
	p := &started{exited: make(chan struct{})}
	inner := make(chan struct{})
	go func() {
		defer close(p.exited)
		p.recorder, p.err = r.inner.Run(ctx, r.id, root, r.mounts, r.process, inner)
	}()
	select {
	case <-inner:
	case <-p.exited:
	}
	w.begin()
	if outer != nil {
		close(outer)
	}
	return p
}

// startFailure is what runc, or the part of it that becomes the process, says
// when there is nothing to become. Its exit code is like any other.
var startFailure = regexp.MustCompile(`^exec (\S+|user process caused): |unable to start container process|^runc run failed: `)

// judge sorts what a workload ended with. An exit code is no error, nor is an
// image that cannot be started; a process that could not be stopped is.
func (s *Summary) judge(err error, lastLines ...string) error {
	var exit *gatewayapi.ExitError
	coded := errors.As(err, &exit) && exit.ExitCode != gatewayapi.UnknownExitStatus
	switch {
	case err == nil:
		return nil
	case s.End != EndExit:
		if exit == nil {
			return err
		}
		return nil
	case coded:
		s.ExitCode = int(exit.ExitCode)
		if i := slices.IndexFunc(lastLines, startFailure.MatchString); i >= 0 {
			s.End, s.Reason = EndStart, lastLines[i]
		}
		return nil
	}
	s.End, s.Reason = EndStart, err.Error()
	return nil
}
