package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"regexp"
	"time"
)

// A route leads from a built image to one of eStargz in a registry.
type route struct {
	name   string
	travel func(ctx context.Context, c *config, prepared string, r *registry) (trip, error)
}

// A trip is what a route took once.
type trip struct {
	steps    []time.Duration
	workload time.Duration // of all steps: the image was run so long
}

func (t trip) own() time.Duration {
	var sum time.Duration
	for _, s := range t.steps {
		sum += s
	}
	return sum - t.workload
}

func (t trip) all() time.Duration { return t.own() + t.workload }

// whole measures all that stands between a built image and one in a registry
// that starts well when it is pulled lazily. Each time there is a copy of the
// same root with the image built, and a registry that has nothing of it.
func whole(ctx context.Context, c *config) (sections []section, err error) {
	prepared, err := prepare(ctx, c, "python", notExported)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, prepared.stop()) }()
	all := &results{}
	routes := []*route{
		{name: "stock gzip, then `ctr-remote image optimize`", travel: optimized()},
		{name: "stock gzip, then `ctr-remote image convert --estargz`", travel: optimized("-no-optimize")},
		{name: ourName + ", profiled", travel: direct("estargz")},
		{name: ourName + ", not profiled", travel: direct("estargz,estargz-profile=none")},
	}
	err = turns(c.runs, routes, func(run int, route *route) error {
		t, err := route.once(ctx, c, prepared.root())
		if err != nil {
			return fmt.Errorf("%s: %w", route.name, err)
		}
		log.Printf("run %d of %d, %s: %.1fs, workload %.1fs", run, c.runs, route.name, t.all().Seconds(), t.workload.Seconds())
		all.add("python", route.name, wall(t.own()), reading{float64(t.workload), "workload-ns/op"})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []section{all.section("A Python application, from built to pushed", "The workload's own time is taken out.")}, nil
}

func (route *route) once(ctx context.Context, c *config, prepared string) (t trip, err error) {
	r, err := startRegistry(ctx, c)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	return route.travel(ctx, c, prepared, r)
}

// exportTo pushes the image with a daemon on a copy of the root, and says how
// long that took and what was shown meanwhile.
func exportTo(ctx context.Context, c *config, binary, prepared, ref, compression string) (took time.Duration, progress string, err error) {
	d, err := startDaemon(ctx, c, binary, prepared)
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	begin := time.Now()
	progress, err = d.build(ctx, "python", "type=registry,oci-mediatypes=true,force-compression=true,name="+ref+",compression="+compression)
	return time.Since(begin), progress, err
}

func direct(compression string) func(context.Context, *config, string, *registry) (trip, error) {
	return func(ctx context.Context, c *config, prepared string, r *registry) (t trip, err error) {
		took, progress, err := exportTo(ctx, c, ourName, prepared, r.ref("python", "ours"), compression)
		if err != nil {
			return t, err
		}
		t.steps = []time.Duration{took}
		if compression == "estargz" {
			t.workload, err = stepTime(progress, "] python3 app.py")
		}
		return t, err
	}
}

func optimized(flags ...string) func(context.Context, *config, string, *registry) (trip, error) {
	return func(ctx context.Context, c *config, prepared string, r *registry) (t trip, err error) {
		exported, _, err := exportTo(ctx, c, "buildkitd", prepared, r.ref("python", plain), "gzip")
		if err != nil {
			return t, err
		}
		n, err := startNode(ctx, c)
		if err != nil {
			return t, err
		}
		defer func() { err = errors.Join(err, n.stop()) }()
		begin := time.Now()
		out, err := n.Client(ctx, "optimize", append(flags, sameLevel, r.ref("python", plain), r.ref("python", "theirs"))...).CombinedOutput()
		if err != nil {
			return t, fmt.Errorf("optimize: %w\n%s", err, out)
		}
		t.steps = []time.Duration{exported, time.Since(begin)}
		if m := ran.FindSubmatch(out); m != nil {
			t.workload, err = time.ParseDuration(string(m[1]))
		}
		return t, err
	}
}

// ran is what the optimizer says of the image.
var ran = regexp.MustCompile(`ran for (\S+)`)
