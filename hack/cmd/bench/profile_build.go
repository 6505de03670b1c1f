package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
)

// buildSubjects builds the images with our daemon, and pushes each of them
// twice. The daemon's gzip layers are those of the stock one.
func buildSubjects(ctx context.Context, c *config, r *registry, all []*subject) (err error) {
	file, err := writeSubjects(c, all)
	if err != nil {
		return err
	}
	d, err := startDaemon(ctx, c, c.tool("buildkitd-esgz"), filepath.Join(c.work, "root"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.createBuilder(ctx); err != nil {
		return err
	}
	for _, s := range all {
		for tag, compression := range map[string]string{plain: "gzip", s.ours.tag: "estargz"} {
			log.Printf("building %s, %s", s.name, tag)
			cmd := d.command(ctx, "buildx", "bake", "--file", file, "--set",
				s.name+".output=type=registry,oci-mediatypes=true,force-compression=true,compression="+compression+",name="+r.ref(s.name, tag), s.name)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("buildx bake %s: %w\n%s", s.name, err, out)
			}
		}
	}
	return nil
}

// writeSubjects says how the images are built upon a stage with the base.
func writeSubjects(c *config, all []*subject) (string, error) {
	image, err := filepath.Abs(filepath.Join(c.repo, "hack", "image"))
	if err != nil {
		return "", err
	}
	targets := map[string]bakeTarget{"base": {Context: c.base, Dockerfile: filepath.Join(image, "base.Dockerfile")}}
	for _, s := range all {
		targets[s.name] = bakeTarget{
			Context: image, Dockerfile: filepath.Join(image, "bench", s.name+".Dockerfile"),
			Contexts: map[string]string{"base": "target:base"}, Args: map[string]string{"BASE": "base"},
		}
	}
	raw, err := json.Marshal(map[string]any{"target": targets})
	if err != nil {
		return "", err
	}
	file := filepath.Join(c.work, "subjects.json")
	return file, os.WriteFile(file, raw, 0o600)
}
