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

// lazyImages are the attributes that each tag of the demo image is exported with.
var lazyImages = []struct{ tag, attributes string }{
	{"gzip", "compression=gzip"},
	{"plain", "compression=estargz,estargz-profile=none"},
	{"profiled", "compression=estargz"},
}

// pushLazyImages builds the demo image once and pushes it in all ways, and an
// image with a large file.
func pushLazyImages(ctx context.Context, c *config, r *registry) (err error) {
	file, err := writeLazyTargets(c)
	if err != nil {
		return err
	}
	root := filepath.Join(c.work, "builder")
	d, err := startDaemon(ctx, c, c.tool("buildkitd-esgz"), root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop(), os.RemoveAll(root)) }()
	if err := d.createBuilder(ctx); err != nil {
		return err
	}
	for _, target := range []string{"demo", "large"} {
		for _, image := range lazyImages {
			if target == "large" && image.tag == "profiled" {
				continue
			}
			log.Printf("pushing %s, %s", target, image.tag)
			cmd := d.command(ctx, "buildx", "bake", "--file", file, target, "--set", target+
				".output=type=registry,oci-mediatypes=true,force-compression=true,name="+r.ref(target, image.tag)+","+image.attributes)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("buildx bake %s: %w\n%s", target, err, out)
			}
		}
	}
	return nil
}

func writeLazyTargets(c *config) (string, error) {
	image, err := filepath.Abs(filepath.Join(c.repo, "hack", "image"))
	if err != nil {
		return "", err
	}
	above := map[string]string{"base": "target:base"}
	raw, err := json.Marshal(map[string]any{"target": map[string]bakeTarget{
		"base":    {Context: c.base, Dockerfile: filepath.Join(image, "base.Dockerfile")},
		"demo":    {Context: image, Dockerfile: filepath.Join(image, "Dockerfile"), Contexts: above, Args: map[string]string{"BASE": "base"}},
		"rebuilt": {Context: image, Dockerfile: filepath.Join(image, "bench", "rebuilt.Dockerfile"), Contexts: above, Args: map[string]string{"BASE": "base"}},
		"large":   {Context: image, Dockerfile: filepath.Join(image, "bench", "large.Dockerfile"), Contexts: above, Args: map[string]string{"BASE": "base"}},
	}})
	if err != nil {
		return "", err
	}
	file := filepath.Join(c.work, "lazy.json")
	return file, os.WriteFile(file, raw, 0o600)
}
