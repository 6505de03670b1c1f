package main

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
)

// A bakeTarget is a target of a bake file.
type bakeTarget struct {
	Context    string            `json:"context"`
	Dockerfile string            `json:"dockerfile"`
	Contexts   map[string]string `json:"contexts,omitempty"`
	Args       map[string]string `json:"args,omitempty"`
}

// writeBakeFile says how all images are built: each upon a stage with the base,
// instead of an image. A target is named as its Dockerfile; that of the demo is
// "demo".
func (b *bench) writeBakeFile() error {
	image, err := filepath.Abs(filepath.Join(b.repo, "hack", "image"))
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(image, "bench", "*.Dockerfile"))
	if err != nil {
		return err
	}
	targets := map[string]bakeTarget{"base": {Context: b.base, Dockerfile: filepath.Join(image, "base.Dockerfile")}}
	add := func(name, file string) {
		targets[name] = bakeTarget{
			Context: image, Dockerfile: file,
			Contexts: map[string]string{"base": "target:base"}, Args: map[string]string{"BASE": "base"},
		}
	}
	add("demo", filepath.Join(image, "Dockerfile"))
	for _, f := range files {
		add(strings.TrimSuffix(filepath.Base(f), ".Dockerfile"), f)
	}
	raw, err := json.Marshal(map[string]any{"target": targets})
	if err != nil {
		return err
	}
	return os.WriteFile(b.bakeFile(), raw, 0o600)
}

func (b *bench) bakeFile() string { return filepath.Join(b.work, "bake.json") }

// build builds a target, sends it to the output, and returns the progress, as
// JSON.
func (d *daemon) build(ctx context.Context, target, output string, args ...string) (progress string, err error) {
	cmd := d.Client(ctx, "buildx", append([]string{"bake", "--file", d.b.bakeFile(), "--progress=rawjson", target, "--set", target + ".output=" + output}, args...)...)
	cmd.Env = append(cmd.Env, "BUILDX_BAKE_ENTITLEMENTS_FS=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		progress := stderr.String()
		return "", fmt.Errorf("buildx bake %s: %w\n%s", target, err, progress[max(0, len(progress)-4096):])
	}
	return stderr.String(), nil
}

// push builds a target, and pushes it. The compression may have attributes behind
// it.
func (d *daemon) push(ctx context.Context, target, ref, compression string, args ...string) (progress string, err error) {
	return d.build(ctx, target, "type=registry,oci-mediatypes=true,force-compression=true,name="+ref+",compression="+compression, args...)
}

// vertexes are those of a progress, each as often as there is news of it. Among its
// lines may be some that buildx prints for people.
func vertexes(progress string) iter.Seq[*client.Vertex] {
	return func(yield func(*client.Vertex) bool) {
		for line := range strings.Lines(progress) {
			var status client.SolveStatus
			if json.Unmarshal([]byte(line), &status) != nil {
				continue
			}
			for _, v := range status.Vertexes {
				if !yield(v) {
					return
				}
			}
		}
	}
}

// stepTime finds in the progress how long a step took by the daemon's clock.
func stepTime(progress, begins string) (time.Duration, error) {
	var took time.Duration
	for v := range vertexes(progress) {
		if strings.Contains(v.Name, begins) && v.Completed != nil && !v.Cached {
			took = v.Completed.Sub(*v.Started)
		}
	}
	if took == 0 {
		return 0, fmt.Errorf("step %q did not run", begins)
	}
	return took, nil
}
