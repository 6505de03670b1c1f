// Package frontend decorates BuildKit's frontends: what they build is then run,
// as steps of the same build, to learn which files it reads. The profile goes
// along with the result, to the exporter that orders layers by it. How reads
// are recorded this package does not know; it marks the commands whose reads
// the worker is to record. The daemon wraps each frontend and serves its API
// through Requests, which sees what exporters want.
//
// # Workloads
//
// The entrypoint is a command on top of the finished target. A RUN step is
// recorded while the build needs it anyway: its operation gets a mark, which is one
// output more, and the root filesystem that it leaves is the one it would have
// left. It is cached apart from the same step without a mark. The steps of a
// stage are taken out of a second solve by the same frontend and put on top of
// the target, whatever that stage's own definition says about how the target
// is built.
//
// A workload that fails, reads nothing, or has a platform that cannot run here
// is a warning. A target that does not build, and a stage that the Dockerfile
// does not have, are errors.
package frontend

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Options connect a frontend with the rest of the daemon. All are required.
type Options struct {
	Requests *Requests
	Marker   Marker
	// File is what the worker writes into the output of a marked command,
	// SummaryFile how the recording went.
	File, SummaryFile string
	// Judge returns what there is to know of a recording by its summary.
	Judge func(summary []byte) Verdict
	// Platforms returns which platforms can run here.
	Platforms func() []ocispecs.Platform
	// Content has the manifests of the images that the bridge has resolved.
	Content content.Provider
}

// A Marker makes the worker record commands. Nobody else can make its marks.
type Marker interface {
	// Mark marks a command, in the place of a mark that it has. A command that
	// cannot be marked stays as it is, and the error says why.
	Mark(*pb.ExecOp, Recording) error
	// Output returns the mount of a marked command that becomes the profile, nil
	// for a command without a mark of this Marker.
	Output(*pb.ExecOp) *pb.Mount
}

// A Recording says how a command is recorded.
type Recording struct {
	// Workload is a command that runs for the sake of the profile: it may be
	// stopped, and fail. The others are steps of the build.
	Workload     bool
	Period, Idle time.Duration
	Ready        string
}

// A Verdict is about one recording.
type Verdict struct {
	// Complaint is what the user should know, "" if all went well.
	Complaint string
	// Incomplete says that another recording may do better. This one is not to
	// be relied upon by other builds.
	Incomplete bool
	Began      time.Time
}

// A Frontend builds what another frontend builds, with profiles if the
// exporters of the build want them.
type Frontend struct {
	inner frontend.Frontend
	opts  Options
	open  opener
}

var _ frontend.Frontend = (*Frontend)(nil)

// New returns inner with profiles.
func New(inner frontend.Frontend, opts Options) *Frontend {
	return &Frontend{inner: inner, opts: opts, open: open}
}

// keySubrequest stands in the options of calls that ask about a Dockerfile
// instead of building it.
const keySubrequest = "requestid"

// Solve implements BuildKit's Frontend. A frontend may call another one, as the
// Dockerfile's does for a "# syntax=" line: only the outermost call is the
// user's build.
func (f *Frontend) Solve(ctx context.Context, bridge frontend.FrontendLLBBridge, exec executor.Executor, opt map[string]string, inputs map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	inner := func(ctx context.Context, bridge frontend.FrontendLLBBridge, opt map[string]string) (*frontend.Result, error) {
		return f.inner.Solve(ctx, bridge, exec, opt, inputs, sid, sm)
	}
	if b := buildOf(ctx); b != nil {
		return inner(ctx, b.within(bridge), opt)
	}
	wish := f.opts.Requests.of(ctx)
	if _, question := opt[keySubrequest]; wish == nil || question {
		return inner(ctx, bridge, opt)
	}
	if wish.source != "" {
		inner = func(ctx context.Context, bridge frontend.FrontendLLBBridge, opt map[string]string) (*frontend.Result, error) {
			return f.convert(ctx, bridge, wish, opt, sid)
		}
	}
	return f.profiled(ctx, &call{
		wish: wish, began: time.Now(), build: &build{}, bridge: bridge, opt: maps.Clone(opt), sid: sid, inner: inner,
	})
}

// A call is one of Solve that a profile is wanted of.
type call struct {
	*wish
	began  time.Time
	build  *build
	bridge frontend.FrontendLLBBridge
	opt    map[string]string // as the client gave them: frontends change theirs
	sid    string
	stages map[string]*frontend.Result // by the names that the requests give
	inner  func(context.Context, frontend.FrontendLLBBridge, map[string]string) (*frontend.Result, error)
}

func (c *call) solve(ctx context.Context, opt map[string]string) (*frontend.Result, error) {
	ctx = context.WithValue(ctx, buildKey{}, c.build)
	return c.inner(ctx, c.build.within(c.bridge), opt)
}

func (f *Frontend) profiled(ctx context.Context, c *call) (_ *frontend.Result, err error) {
	res, err := c.solve(ctx, maps.Clone(c.opt))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			release(ctx, res)
		}
	}()
	if res == nil || res.IsEmpty() || len(c.requests) == 0 {
		return res, nil
	}
	defer c.releaseStages(ctx)
	if err := c.solveStages(ctx); err != nil {
		return nil, err
	}
	targets, err := targetsOf(res)
	if err != nil {
		return nil, err
	}
	eg, egCtx := errgroup.WithContext(ctx)
	for _, t := range targets {
		eg.Go(func() error { return f.profile(egCtx, c, t) })
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	return res, nil
}

// solveStages solves the stages that hold workloads. Nothing of them is built
// yet, so that a wrong name shows at once.
func (c *call) solveStages(ctx context.Context) error {
	c.stages = map[string]*frontend.Result{}
	for _, r := range c.requests {
		if !r.Stage || c.stages[r.StageName] != nil {
			continue
		}
		opt := maps.Clone(c.opt)
		if opt == nil {
			opt = map[string]string{}
		}
		opt["target"] = r.StageName
		res, err := c.solve(ctx, opt)
		if err != nil {
			return fmt.Errorf("estargz-profile=stage: stage %s, name another one with estargz-profile-stage: %w", r.StageName, err)
		}
		c.stages[r.StageName] = res
	}
	return nil
}

func (c *call) releaseStages(ctx context.Context) {
	for _, stage := range c.stages {
		release(ctx, stage)
	}
}

func release(ctx context.Context, res *frontend.Result) {
	if res == nil {
		return
	}
	ctx = context.WithoutCancel(ctx)
	_ = res.EachRef(func(ref solver.ResultProxy) error { return ref.Release(ctx) })
}
