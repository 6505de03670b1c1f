package main

import (
	"context"
	"fmt"
	"regexp"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// A route leads from a built image to one of eStargz in a registry. It returns how
// long that took, and for how long of it the image was run.
type route struct {
	name   string
	travel func(ctx context.Context, b *bench, prepared string, r *registry) (took, workload time.Duration, err error)
}

// whole measures all that stands between a built image and one in a registry
// that starts well when it is pulled lazily. Each time there is a copy of the
// same root with the image built, and a registry that has nothing of it.
func (b *bench) whole(ctx context.Context) error {
	b.startSection("A Python application, from built to pushed, without the workload's own time")
	routes := []route{
		{"stock gzip, then `ctr-remote image optimize`", optimized()},
		{"stock gzip, then `ctr-remote image convert --estargz`", optimized("-no-optimize")},
		{ourName + ", profiled", direct("estargz")},
		{ourName + ", not profiled", direct("estargz,estargz-profile=none")},
	}
	return b.withPrepared(ctx, "python", notExported, func(prepared string) error {
		return turns(b.runs, routes, func(way route) error {
			return b.withRegistry(ctx, func(r *registry) error {
				took, workload, err := way.travel(ctx, b, prepared, r)
				if err != nil {
					return fmt.Errorf("%s: %w", way.name, err)
				}
				b.add("python", way.name, wall(took-workload), reading{float64(workload), "workload-ns/op"})
				return nil
			})
		})
	})
}

// pushPrepared pushes the image with a daemon on a copy of the root, and says how
// long that took and what was shown meanwhile.
func (b *bench) pushPrepared(ctx context.Context, binary, prepared, ref, compression string) (took time.Duration, progress string, err error) {
	err = b.withDaemon(ctx, binary, prepared, func(d *daemon) error {
		begin := time.Now()
		progress, err = d.push(ctx, "python", ref, compression)
		took = time.Since(begin)
		return err
	})
	return took, progress, err
}

func direct(compression string) func(context.Context, *bench, string, *registry) (took, workload time.Duration, err error) {
	return func(ctx context.Context, b *bench, prepared string, r *registry) (took, workload time.Duration, err error) {
		took, progress, err := b.pushPrepared(ctx, ourName, prepared, r.ref("python", "ours"), compression)
		if err == nil && compression == "estargz" {
			workload, err = stepTime(progress, "] python3 app.py")
		}
		return took, workload, err
	}
}

func optimized(flags ...string) func(context.Context, *bench, string, *registry) (took, workload time.Duration, err error) {
	return func(ctx context.Context, b *bench, prepared string, r *registry) (took, workload time.Duration, err error) {
		took, _, err = b.pushPrepared(ctx, "buildkitd", prepared, r.ref("python", plain), "gzip")
		if err != nil {
			return 0, 0, err
		}
		err = b.withNode(ctx, func(n *harness.Node) error {
			begin := time.Now()
			out, err := n.Client(ctx, "optimize", append(flags, sameLevel, r.ref("python", plain), r.ref("python", "theirs"))...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("optimize: %w\n%s", err, out)
			}
			took += time.Since(begin)
			if m := ran.FindSubmatch(out); m != nil {
				workload, err = time.ParseDuration(string(m[1]))
			}
			return err
		})
		return took, workload, err
	}
}

// ran is what the optimizer says of the image.
var ran = regexp.MustCompile(`ran for (\S+)`)
