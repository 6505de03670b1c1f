package main

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/sys/userns"
	"github.com/urfave/cli/v3"
)

// The flags that both kinds of worker have. The settings differ in nothing but
// the name and the part of the configuration.

func enabledSetting(name, usage string, def *bool, field func(*config.Config) **bool) setting {
	value := "auto"
	if def != nil {
		value = strconv.FormatBool(*def)
	}
	return parsed(&cli.StringFlag{Name: name, Usage: usage, Value: value},
		func(cfg *config.Config, v string) (err error) {
			*field(cfg), err = parseBoolOrAuto(v)
			return err
		})
}

// labelsSetting adds to the labels of the configuration.
func labelsSetting(name string, field func(*config.Config) *map[string]string) setting {
	return parsedList(&cli.StringSliceFlag{
		Name:  name,
		Usage: "user-specific annotation labels (com.example.foo=bar)",
	}, func(cfg *config.Config, values []string) error {
		labels, err := parseLabels(values)
		if err != nil {
			return err
		}
		target := field(cfg)
		if *target == nil {
			*target = make(map[string]string, len(labels))
		}
		maps.Copy(*target, labels)
		return nil
	})
}

func workerRootlessSetting(name string, field func(*config.Config) *bool) setting {
	inUserNS := userns.RunningInUserNS()
	return whenGiven(&cli.BoolFlag{Name: name, Usage: "enable rootless mode", Value: inUserNS},
		func(c *cli.Command, cfg *config.Config) error {
			if !inUserNS {
				return errors.New("must run as the mapped root of a user namespace: for rootless mode use RootlessKit")
			}
			*field(cfg) = c.Bool(name)
			return nil
		})
}

func gcSetting(name string, def *bool, field func(*config.Config) **bool) setting {
	return optional(&cli.BoolFlag{
		Name:  name,
		Usage: "Enable automatic garbage collection on worker",
		Value: def == nil || *def,
	}, field)
}

// keepStorageSetting is hidden where the configuration has rules of its own:
// those leave it without effect.
func keepStorageSetting(name string, def config.Config, gc config.GCConfig, field func(*config.Config) *config.GCConfig) setting {
	return parsed(&cli.StringFlag{
		Name:   name,
		Usage:  `Amount of storage GC keep locally, format "Reserved[,Free[,Maximum]]" (MB)`,
		Value:  formatKeepStorage(gc, def.Root),
		Hidden: len(gc.GCPolicy) != 0,
	}, func(cfg *config.Config, v string) error {
		return parseKeepStorage(v, field(cfg))
	})
}

// parseBoolOrAuto returns nil for auto.
func parseBoolOrAuto(s string) (*bool, error) {
	if s == "" || strings.EqualFold(s, "auto") {
		return nil, nil
	}
	enabled, err := strconv.ParseBool(s)
	if err != nil {
		return nil, fmt.Errorf("%q: want true, false or auto", s)
	}
	return &enabled, nil
}

func parseLabels(values []string) (map[string]string, error) {
	labels := make(map[string]string, len(values))
	for _, v := range values {
		key, value, ok := strings.Cut(v, "=")
		if !ok {
			return nil, fmt.Errorf("%q: want key=value", v)
		}
		labels[key] = value
	}
	return labels, nil
}
