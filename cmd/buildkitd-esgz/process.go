package main

import (
	"fmt"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/archutil"
	"github.com/moby/buildkit/util/resolver/limited"
	"github.com/sirupsen/logrus"
)

// setUpLogging configures the logger of the process, which BuildKit and
// containerd write to.
func setUpLogging(cfg config.LogConfig) error {
	switch cfg.Format {
	case "json":
		logrus.SetFormatter(&logrus.JSONFormatter{})
	case "text", "":
		logrus.SetFormatter(&logrus.TextFormatter{FullTimestamp: true})
	default:
		return fmt.Errorf("log.format (--log-format) %q: want text or json", cfg.Format)
	}
	if cfg.Level == "" {
		return nil
	}
	level, err := logrus.ParseLevel(cfg.Level)
	if err != nil {
		return fmt.Errorf("log.level (--log-level, BUILDKITD_LOG_LEVEL) %q: want one of %v", cfg.Level, logrus.AllLevels)
	}
	logrus.SetLevel(level)
	return nil
}

// setUpSystem sets limits that BuildKit keeps for the whole process.
func setUpSystem(cfg *config.SystemConfig) error {
	if cfg == nil {
		return nil
	}
	if age := cfg.PlatformsCacheMaxAge; age != nil {
		archutil.CacheMaxAge = age.Duration
	}
	if limit := cfg.MaxRegistryConcurrency; limit != nil {
		if *limit <= 0 {
			return fmt.Errorf("system.maxRegistryConcurrency %d: want a number greater than zero", *limit)
		}
		limited.SetMaxConcurrency(int64(*limit))
	}
	return nil
}
