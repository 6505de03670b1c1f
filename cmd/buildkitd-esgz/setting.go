package main

import (
	"fmt"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/urfave/cli/v3"
)

// A setting is a flag together with the part of the configuration that it
// overrides.
type setting struct {
	flag cli.Flag
	// apply changes the configuration; nil for a flag that has no place in it.
	// It is called whether the flag was given or not.
	apply func(*cli.Command, *config.Config) error
}

func (s setting) name() string { return s.flag.Names()[0] }

func flagsOf(settings []setting) []cli.Flag {
	flags := make([]cli.Flag, len(settings))
	for i, s := range settings {
		flags[i] = s.flag
	}
	return flags
}

// applySettings changes cfg, which was read from a file, by what was given on
// the command line or in the environment.
func applySettings(c *cli.Command, settings []setting, cfg *config.Config) error {
	for _, s := range settings {
		if s.apply == nil {
			continue
		}
		if err := s.apply(c, cfg); err != nil {
			return fmt.Errorf("--%s: %w", s.name(), err)
		}
	}
	return nil
}

// text stores a string in a field of the configuration.
func text(f *cli.StringFlag, field func(*config.Config) *string) setting {
	return stored(f, (*cli.Command).String, field)
}

// filled is text that an empty value leaves alone, so that scripts can pass a
// variable that may be empty.
func filled(f *cli.StringFlag, field func(*config.Config) *string) setting {
	return parsed(f, func(cfg *config.Config, v string) error {
		if v != "" {
			*field(cfg) = v
		}
		return nil
	})
}

func number(f *cli.IntFlag, field func(*config.Config) *int) setting {
	return stored(f, (*cli.Command).Int, field)
}

func toggle(f *cli.BoolFlag, field func(*config.Config) *bool) setting {
	return stored(f, (*cli.Command).Bool, field)
}

// list replaces a list of the configuration by the values given.
func list(f *cli.StringSliceFlag, field func(*config.Config) *[]string) setting {
	return stored(f, (*cli.Command).StringSlice, field)
}

// optional is a toggle for a field that can be unset as well.
func optional(f *cli.BoolFlag, field func(*config.Config) **bool) setting {
	given := func(c *cli.Command, name string) *bool {
		value := c.Bool(name)
		return &value
	}
	return stored(f, given, field)
}

func stored[T any](f cli.Flag, get func(*cli.Command, string) T, field func(*config.Config) *T) setting {
	name := f.Names()[0]
	return whenGiven(f, func(c *cli.Command, cfg *config.Config) error {
		*field(cfg) = get(c, name)
		return nil
	})
}

// parsed hands the value to a function, for what needs more than storing.
func parsed(f *cli.StringFlag, set func(*config.Config, string) error) setting {
	return whenGiven(f, func(c *cli.Command, cfg *config.Config) error {
		return set(cfg, c.String(f.Name))
	})
}

// parsedList does so for all values of a flag that may be repeated.
func parsedList(f *cli.StringSliceFlag, set func(*config.Config, []string) error) setting {
	return whenGiven(f, func(c *cli.Command, cfg *config.Config) error {
		return set(cfg, c.StringSlice(f.Name))
	})
}

// whenGiven leaves the configuration alone unless the flag was given: the
// flag's default may come from another configuration file than the one in use.
func whenGiven(f cli.Flag, apply func(*cli.Command, *config.Config) error) setting {
	name := f.Names()[0]
	return setting{flag: f, apply: func(c *cli.Command, cfg *config.Config) error {
		if !c.IsSet(name) {
			return nil
		}
		return apply(c, cfg)
	}}
}
