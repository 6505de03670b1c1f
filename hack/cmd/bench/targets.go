package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

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
func writeBakeFile(c *config) error {
	image, err := filepath.Abs(filepath.Join(c.repo, "hack", "image"))
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(image, "bench", "*.Dockerfile"))
	if err != nil {
		return err
	}
	targets := map[string]bakeTarget{"base": {Context: c.base, Dockerfile: filepath.Join(image, "base.Dockerfile")}}
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
	return os.WriteFile(c.bakeFile(), raw, 0o600)
}

func (c *config) bakeFile() string { return filepath.Join(c.work, "bake.json") }

// startBuilder starts a daemon with what builds images on it.
func startBuilder(ctx context.Context, c *config, binary, root string) (*daemon, error) {
	if err := writeBakeFile(c); err != nil {
		return nil, err
	}
	d, err := startDaemon(ctx, c, c.tool(binary), root)
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(d.buildxConfig()); err != nil { // that of an earlier builder
		return nil, errors.Join(err, d.stop())
	}
	create := d.command(ctx, "buildx", "create", "--name", "bench", "--driver", "remote", d.addr)
	if out, err := create.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("buildx create: %w\n%s", err, out), d.stop())
	}
	return d, nil
}

func (d *daemon) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.c.tool(name), args...)
	cmd.Env = append(os.Environ(), "BUILDX_CONFIG="+d.buildxConfig(), "BUILDX_BUILDER=bench",
		"BUILDX_NO_DEFAULT_ATTESTATIONS=1", "BUILDX_BAKE_ENTITLEMENTS_FS=0")
	return cmd
}

func (d *daemon) buildxConfig() string { return filepath.Join(d.c.work, "buildx") }

// build builds a target, sends it to the output, and returns the progress, as
// JSON.
func (d *daemon) build(ctx context.Context, target, output string, args ...string) (progress string, err error) {
	cmd := d.command(ctx, "buildx", append([]string{"bake", "--file", d.c.bakeFile(), "--progress=rawjson", target, "--set", target + ".output=" + output}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		progress := stderr.String()
		return "", fmt.Errorf("buildx bake %s: %w\n%s", target, err, progress[max(0, len(progress)-4096):])
	}
	return stderr.String(), nil
}

// statuses are those of a progress. Among its lines may be some that buildx
// prints for people.
func statuses(progress string) iter.Seq[client.SolveStatus] {
	return func(yield func(client.SolveStatus) bool) {
		for line := range strings.Lines(progress) {
			var status client.SolveStatus
			if json.Unmarshal([]byte(line), &status) == nil && !yield(status) {
				return
			}
		}
	}
}
