package frontend

import (
	"context"
	"fmt"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/bklog"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// recordings are what one request is answered with.
type recordings struct {
	*job
	profiles []*profile.Profile
	warned   bool
}

// steps takes the recordings of the target's own steps.
func (rec *recordings) steps(ctx context.Context, r *profile.Request) error {
	if !r.Run {
		return nil
	}
	defs, err := rec.built.profiles(rec.f.opts.Marker, rec.job.steps)
	if err != nil {
		return err
	}
	for _, def := range defs {
		// An incomplete one stays: the step would have to be built again.
		p, verdict, err := rec.read(ctx, def)
		if more, err := rec.take(ctx, def, p, verdict, err); !more {
			return err
		}
	}
	return nil
}

// stage records what a stage adds to the target.
func (rec *recordings) stage(ctx context.Context, r *profile.Request) error {
	stage := refOf(rec.stages[r.StageName], rec.ID)
	if !r.Stage || stage == nil {
		return nil
	}
	g, err := parse(stage.Definition())
	if err != nil {
		return fmt.Errorf("definition of stage %s: %w", r.StageName, err)
	}
	on, own, err := rec.mark(Recording{}).continued(g, rec.built)
	if err != nil {
		return fmt.Errorf("stage %s: %w", r.StageName, err)
	}
	if len(own) == 0 {
		rec.warn(ctx, rec.built.to.head, "stage %s adds no RUN step to the target", r.StageName)
	}
	defs, err := on.profiles(rec.f.opts.Marker, rec.recordable(ctx, on, own))
	if err != nil {
		return err
	}
	return rec.record(ctx, defs...)
}

// entrypoint records what a container of the image would run.
func (rec *recordings) entrypoint(ctx context.Context, r *profile.Request) error {
	if !r.Entrypoint {
		return nil
	}
	m := rec.mark(Recording{Workload: true, Period: r.Period, Idle: r.Idle, Ready: r.Ready})
	w, err := newWorkload(rec.config, rec.Platform.Platform, r, m)
	if err != nil {
		rec.warn(ctx, rec.built.to.head, "%v", err)
		return nil
	}
	def, err := w.on(ctx, rec.built.to)
	if err != nil {
		rec.warn(ctx, rec.built.to.head, "%v", err)
		return nil
	}
	return rec.record(ctx, def)
}

// record builds recordings, one after the other. The first that cannot be had is
// the last: a step follows from those before it. One that is not complete and
// from an earlier build is made once more. Only those that are complete are kept
// with the image in an exported cache.
func (rec *recordings) record(ctx context.Context, defs ...*pb.Definition) error {
	for _, def := range defs {
		p, verdict, err := rec.read(ctx, def)
		if err == nil && verdict.Incomplete && verdict.Began.Before(rec.began) {
			p, verdict, err = rec.read(ctx, anew(def))
		}
		more, takeErr := rec.take(ctx, def, p, verdict, err)
		if !more {
			return takeErr
		}
		if !verdict.Incomplete {
			rec.made = append(rec.made, def)
		}
	}
	return nil
}

// anew returns def with its last command not taken from the cache.
func anew(def *pb.Definition) *pb.Definition {
	again := def.CloneVT()
	var end pb.Op
	if err := end.Unmarshal(again.Def[len(again.Def)-1]); err != nil || len(end.Inputs) == 0 {
		return def
	}
	if m := again.Metadata[end.Inputs[0].Digest]; m != nil {
		m.IgnoreCache = true
	}
	return again
}

// take takes what was read of a recording, and tells whether others may follow.
func (rec *recordings) take(ctx context.Context, def *pb.Definition, p *profile.Profile, v Verdict, err error) (more bool, _ error) {
	switch {
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case err != nil:
		return false, rec.warnOf(ctx, def, err.Error())
	case v.Complaint != "":
		if err := rec.warnOf(ctx, def, v.Complaint); err != nil {
			return false, err
		}
	}
	rec.profiles = append(rec.profiles, p)
	return true, nil
}

func (rec *recordings) read(ctx context.Context, def *pb.Definition) (p *profile.Profile, v Verdict, err error) {
	ref, err := rec.origin().solve(ctx, def, rec.sid)
	if err != nil {
		return nil, v, err
	}
	rec.refs = append(rec.refs, ref)
	res, err := ref.Result(ctx)
	if err != nil {
		return nil, v, err
	}
	dir, unmount, err := rec.f.open(ctx, res, rec.sid)
	if err != nil {
		return nil, v, fmt.Errorf("output: %w", err)
	}
	defer func() {
		// What was read is right all the same.
		if err := unmount(); err != nil {
			bklog.G(ctx).WithError(err).Error("unmounting a recording")
		}
	}()
	return rec.f.opts.readOutput(ctx, dir)
}

func (rec *recordings) warn(ctx context.Context, step *pb.Input, format string, args ...any) {
	rec.warned = true
	rec.job.warn(ctx, step, format, args...)
}

// warnOf is warn about the step that makes a profile.
func (rec *recordings) warnOf(ctx context.Context, def *pb.Definition, msg string) error {
	g, err := parse(def)
	if err != nil {
		return err
	}
	rec.warn(ctx, g.head, "%s", msg)
	return nil
}
