package frontend

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// A job builds one target and makes its profile.
type job struct {
	*call
	*target
	f *Frontend

	built    *rewriter // from the frontend's definition to the one that is built
	steps    []digest.Digest
	profiles []*profile.Profile
	made     []*pb.Definition // where the profiles come from
	warned   bool
	refs     []solver.ResultProxy // to be released
}

func (f *Frontend) profile(ctx context.Context, c *call, t *target) error {
	if t.ref == nil {
		return t.attach(&profile.Profile{})
	}
	j := &job{call: c, target: t, f: f}
	defer j.release(ctx)
	if err := j.buildTarget(ctx); err != nil {
		return err
	}
	if !j.runs() {
		j.warn(ctx, j.built.to.head, "this builder cannot run it")
		return t.attach(&profile.Profile{})
	}
	for _, record := range []func(context.Context) error{j.recordSteps, j.recordStage, j.recordEntrypoint} {
		if err := record(ctx); err != nil {
			return err
		}
	}
	return j.finish(ctx)
}

// buildTarget marks the target's own steps, if they are wanted, and builds it:
// that it fails must not pass for a workload that fails.
func (j *job) buildTarget(ctx context.Context) error {
	g, err := parse(j.original)
	if err != nil {
		return fmt.Errorf("definition of %s: %w", j.ID, err)
	}
	if j.request.Run && j.runs() {
		j.steps = g.steps()
	}
	if j.built, err = j.mark(Recording{}).steps(g, j.steps); err != nil {
		return err
	}
	j.steps = j.recordable(ctx, j.built, j.steps)
	if len(j.steps) > 0 {
		if err := j.swapMarked(ctx); err != nil {
			return err
		}
	}
	_, err = j.ref.Result(ctx)
	return err
}

// recordable returns those of the steps that could be marked, and warns of the
// others.
func (j *job) recordable(ctx context.Context, r *rewriter, steps []digest.Digest) []digest.Digest {
	return slices.DeleteFunc(steps, func(d digest.Digest) bool {
		if r.output(j.f.opts.Marker, d) != nil {
			return false
		}
		j.warn(ctx, &pb.Input{Digest: string(r.became[d])}, "a step cannot be recorded, for one of its mounts: %s", strings.Join(r.from.ops[d].GetExec().Meta.Args, " "))
		return true
	})
}

// swapMarked has the target built with marks, and what its attestations are
// about as well, or it would be built a second time for them.
func (j *job) swapMarked(ctx context.Context) error {
	profiles, err := j.built.profiles(j.f.opts.Marker, j.steps)
	if err != nil {
		return err
	}
	ref, err := j.keep(ctx, profiles)
	if err != nil {
		return err
	}
	j.refs = append(j.refs, j.replace(ref))
	for i, a := range j.res.Attestations[j.ID] {
		if a.Ref == nil {
			continue
		}
		marked, err := j.markAttestation(ctx, a.Ref.Definition())
		if err != nil {
			return err
		}
		j.refs = append(j.refs, j.replaceAttestation(i, marked))
	}
	return nil
}

func (j *job) markAttestation(ctx context.Context, def *pb.Definition) (solver.ResultProxy, error) {
	g, err := parse(def)
	if err != nil {
		return nil, fmt.Errorf("attestation of %s: %w", j.ID, err)
	}
	r, err := j.built.below(g, g.inherits(j.built.from), unchanged)
	if err != nil {
		return nil, err
	}
	marked, err := r.to.definition(r.to.head)
	if err != nil {
		return nil, err
	}
	return j.build.originOf(def, j.bridge).solve(ctx, marked, j.sid)
}

func (j *job) recordSteps(ctx context.Context) error {
	profiles, err := j.built.profiles(j.f.opts.Marker, j.steps)
	if err != nil {
		return err
	}
	return j.collect(ctx, profiles...)
}

func (j *job) recordStage(ctx context.Context) error {
	if j.stage == nil {
		return nil
	}
	g, err := parse(j.stage.Definition())
	if err != nil {
		return fmt.Errorf("definition of stage %s: %w", j.request.StageName, err)
	}
	r, own, err := j.mark(Recording{}).continued(g, j.built)
	if err != nil {
		return fmt.Errorf("stage %s: %w", j.request.StageName, err)
	}
	if len(own) == 0 {
		j.warn(ctx, j.built.to.head, "stage %s adds no RUN step to the target", j.request.StageName)
	}
	profiles, err := r.profiles(j.f.opts.Marker, j.recordable(ctx, r, own))
	if err != nil {
		return err
	}
	return j.collect(ctx, profiles...)
}

func (j *job) recordEntrypoint(ctx context.Context) error {
	if !j.request.Entrypoint {
		return nil
	}
	m := j.mark(Recording{Workload: true, Period: j.request.Period, Idle: j.request.Idle, Ready: j.request.Ready})
	w, err := newWorkload(j.config, j.Platform.Platform, j.request, m)
	if err != nil {
		j.warn(ctx, j.built.to.head, "%v", err)
		return nil
	}
	def, err := w.on(ctx, j.built.to)
	if err != nil {
		return err
	}
	return j.collect(ctx, def)
}

// collect reads profiles, one after the other. The first that cannot be had is
// the last: a step follows from those before it.
func (j *job) collect(ctx context.Context, defs ...*pb.Definition) error {
	for _, def := range defs {
		p, complaint, err := j.read(ctx, def)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return j.warnOf(ctx, def, err.Error())
		case complaint != "":
			if err := j.warnOf(ctx, def, complaint); err != nil {
				return err
			}
		}
		j.profiles = append(j.profiles, p)
		j.made = append(j.made, def)
	}
	return nil
}

func (j *job) read(ctx context.Context, def *pb.Definition) (p *profile.Profile, complaint string, err error) {
	ref, err := j.origin().solve(ctx, def, j.sid)
	if err != nil {
		return nil, "", err
	}
	j.refs = append(j.refs, ref)
	res, err := ref.Result(ctx)
	if err != nil {
		return nil, "", err
	}
	dir, unmount, err := j.f.open(ctx, res, j.sid)
	if err != nil {
		return nil, "", fmt.Errorf("output: %w", err)
	}
	defer unmount()
	return j.f.opts.readOutput(ctx, dir)
}

// finish attaches what was recorded. Without an export of the cache nothing
// has to keep the profile: this builder finds it by its own key.
func (j *job) finish(ctx context.Context) error {
	p := profile.Merge(j.profiles...)
	if len(p.Files) == 0 && !j.warned {
		j.warn(ctx, j.built.to.head, "no file was read")
	}
	if j.exportsCache && len(j.made) > len(j.steps) {
		ref, err := j.keep(ctx, j.made)
		if err != nil {
			return err
		}
		j.refs = append(j.refs, j.replace(ref))
		if _, err := ref.Result(ctx); err != nil {
			return err
		}
	}
	return j.attach(p)
}

// keep returns the target as something that needs profiles.
func (j *job) keep(ctx context.Context, profiles []*pb.Definition) (solver.ResultProxy, error) {
	def, err := keeping(ctx, j.built.to, j.Platform.Platform, profiles)
	if err != nil {
		return nil, err
	}
	return j.origin().solve(ctx, def, j.sid)
}

// origin returns how the frontend solved the target.
func (j *job) origin() origin {
	return j.build.originOf(j.original, j.bridge)
}

func (j *job) mark(r Recording) mark {
	return mark{j.f.opts.Marker, r}
}

func (j *job) runs() bool {
	return slices.ContainsFunc(j.f.opts.Platforms(), func(p ocispecs.Platform) bool {
		return platforms.Only(p).Match(j.Platform.Platform)
	})
}

// warn tells the user of what goes without a profile. Clients show a warning
// only of a step they know, one that was built.
func (j *job) warn(ctx context.Context, step *pb.Input, format string, args ...any) {
	j.warned = true
	msg := fmt.Sprintf("profile of %s: %s", j.ID, fmt.Sprintf(format, args...))
	_ = j.bridge.Warn(ctx, digest.Digest(step.Digest), msg, frontend.WarnOpts{
		Detail: [][]byte{[]byte("The image is complete. Files that were not recorded are not fetched first.")},
	})
}

// warnOf is warn about the step that makes a profile.
func (j *job) warnOf(ctx context.Context, def *pb.Definition, msg string) error {
	g, err := parse(def)
	if err != nil {
		return err
	}
	j.warn(ctx, g.head, "%s", msg)
	return nil
}

func (j *job) release(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	for _, ref := range j.refs {
		_ = ref.Release(ctx)
	}
}
