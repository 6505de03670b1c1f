package main

import (
	"context"
	"errors"
	"os"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// A registry is an empty one on loopback.
type registry struct {
	*harness.Registry
	dir string
}

func (r *registry) ref(name, tag string) string { return r.Address + "/" + name + ":" + tag }

func startRegistry(ctx context.Context, c *config) (*registry, error) {
	dir, err := os.MkdirTemp(c.work, "registry")
	if err != nil {
		return nil, err
	}
	r, err := harness.StartRegistry(ctx, c.tools, dir)
	return &registry{r, dir}, err
}

// stop ends the registry and removes all that it had.
func (r *registry) stop() error { return errors.Join(r.Stop(), os.RemoveAll(r.dir)) }
