package main

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/solver/llbsolver/cdidevices"
	"github.com/moby/buildkit/util/bklog"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// newDevices returns what offers devices to builds by the Container Device
// Interface; nil if that is disabled.
func newDevices(cfg config.CDIConfig) (*cdidevices.Manager, error) {
	if devicesDisabled(cfg) {
		return nil, nil
	}
	if len(cfg.SpecDirs) == 0 {
		return nil, errors.New("cdi.specDirs (--cdi-spec-dir) is empty: name a directory, or disable CDI with cdi.disabled (--cdi-disabled)")
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(cfg.SpecDirs...))
	if err != nil {
		return nil, fmt.Errorf("CDI: %w", err)
	}
	// The errors of Refresh are those of single specifications, told below.
	// buildkitd 0.33 refuses to start because of them, with devices or without.
	_ = cache.Refresh()
	for path, problems := range cache.GetErrors() {
		for _, problem := range problems {
			if errors.Is(problem, fs.ErrNotExist) {
				continue // none of the default directories has to exist
			}
			bklog.L.Warnf("CDI: %s: %v", path, problem)
		}
	}
	return cdidevices.NewManager(cache, cfg.AutoAllowed), nil
}

func devicesDisabled(cfg config.CDIConfig) bool {
	return cfg.Disabled != nil && *cfg.Disabled
}
