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

// A job builds one target and makes its profiles.
type job struct {
	*call
	*target
	f *Frontend

	built    *rewriter // from the frontend's definition to the one that is built
	steps    []digest.Digest
	made     []*pb.Definition     // where profiles come from, but for those of steps
	refs     []solver.ResultProxy // to be released
	warnings map[string]bool      // those so far
}

// profile makes the profiles of one target. A target without one has the layers
// that it would have without us.
func (f *Frontend) profile(ctx context.Context, c *call, t *target) error {
	if t.ref == nil {
		return nil
	}
	j := &job{call: c, target: t, f: f, warnings: map[string]bool{}}
	defer j.release(ctx)
	if err := j.buildTarget(ctx); err != nil {
		return err
	}
	if !j.runs() {
		j.warn(ctx, j.built.to.head, "this builder cannot run it")
		return nil
	}
	for _, r := range j.requests {
		if err := j.answer(ctx, r); err != nil {
			return err
		}
	}
	if err := j.attachBase(ctx); err != nil {
		return err
	}
	return j.keepProfiles(ctx)
}

// answer makes the profile that answers one request.
func (j *job) answer(ctx context.Context, r *profile.Request) error {
	rec := &recordings{job: j}
	for _, record := range []func(context.Context, *profile.Request) error{rec.steps, rec.stage, rec.entrypoint} {
		if err := record(ctx, r); err != nil {
			return err
		}
	}
	p := profile.Merge(rec.profiles...)
	if len(p.Files) > 0 {
		return j.attach(r, p)
	}
	if !rec.warned {
		j.warn(ctx, j.built.to.head, "no file was read")
	}
	return nil
}

// buildTarget marks the target's own steps, if they are wanted, and builds it:
// that it fails must not pass for a workload that fails.
func (j *job) buildTarget(ctx context.Context) error {
	g, err := parse(j.original)
	if err != nil {
		return fmt.Errorf("definition of %s: %w", j.ID, err)
	}
	if j.wantsSteps() && j.runs() {
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

func (j *job) wantsSteps() bool {
	return slices.ContainsFunc(j.requests, func(r *profile.Request) bool { return r.Run })
}

// keepProfiles makes the target need its profiles, if the build cache is exported.
// Otherwise nothing has to keep them: this builder finds them by their own keys.
func (j *job) keepProfiles(ctx context.Context) error {
	if !j.exportsCache || len(j.made) == 0 {
		return nil
	}
	steps, err := j.built.profiles(j.f.opts.Marker, j.steps)
	if err != nil {
		return err
	}
	ref, err := j.keep(ctx, append(steps, j.made...))
	if err != nil {
		return err
	}
	j.refs = append(j.refs, j.replace(ref))
	_, err = ref.Result(ctx)
	return err
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

// warn tells the user of what goes without a profile, once: where nothing can be
// recorded, the reason is the same for every step. Clients show a warning only
// of a step they know, one that was built.
func (j *job) warn(ctx context.Context, step *pb.Input, format string, args ...any) {
	msg := fmt.Sprintf("profile of %s: %s", j.ID, fmt.Sprintf(format, args...))
	if j.warnings[msg] {
		return
	}
	j.warnings[msg] = true
	_ = j.bridge.Warn(ctx, digest.Digest(step.Digest), msg, frontend.WarnOpts{
		Detail: [][]byte{[]byte("The image is complete. Files that were not recorded are not fetched first.")},
	})
}

func (j *job) release(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	for _, ref := range j.refs {
		_ = ref.Release(ctx)
	}
}
