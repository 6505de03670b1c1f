package main

import (
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	bkworker "github.com/moby/buildkit/worker"
)

// newFrontends returns what turns a client's request into build steps, by the
// names that clients use.
func newFrontends(cfg config.Config, workers bkworker.Infos) (map[string]frontend.Frontend, error) {
	frontends := map[string]frontend.Frontend{}
	if enabled(cfg.Frontends.Dockerfile.Enabled) {
		frontends["dockerfile.v0"] = forwarder.NewGatewayForwarder(workers, dockerfile.Build)
	}
	if enabled(cfg.Frontends.Gateway.Enabled) {
		images, err := gateway.NewGatewayFrontend(workers, cfg.Frontends.Gateway.AllowedRepositories)
		if err != nil {
			return nil, err
		}
		frontends["gateway.v0"] = images
	}
	return frontends, nil
}

func enabled(b *bool) bool { return b == nil || *b }
