package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v3"

	"github.com/buildkitd-esgz/buildkitd-esgz/exporter"
)

// configuration is BuildKit's with our own section.
type configuration struct {
	config.Config
	defaults exporter.Defaults
}

// ownSection is the section of the file that BuildKit does not know, and skips.
type ownSection struct {
	EStargz map[string]any `toml:"estargz"`
}

// loadConfig returns the configuration that holds: the file, changed by flags
// and environment, completed by defaults. Warnings are for the log, which is
// set up by the very configuration that they are about.
func loadConfig(c *cli.Command, settings []setting) (cfg configuration, warnings []string, err error) {
	path := c.String(configFlag)
	cfg, warnings, err = readConfig(path)
	if errors.Is(err, fs.ErrNotExist) {
		// BuildKit starts with defaults then, and so do we; but whoever names
		// a file expects it to be read.
		if c.IsSet(configFlag) {
			warnings = append(warnings, fmt.Sprintf("--%s: %s does not exist, continuing with defaults", configFlag, path))
		}
		cfg.defaults, err = exporter.ParseDefaults(nil)
	}
	if err != nil {
		return cfg, nil, err
	}
	warnings = append(warnings, deprecations(c, &cfg.Config)...)
	if err := applySettings(c, settings, &cfg.Config); err != nil {
		return cfg, nil, err
	}
	if cfg.Root != "" {
		if cfg.Root, err = filepath.Abs(cfg.Root); err != nil {
			return cfg, nil, err
		}
	}
	if err := setDefaults(&cfg.Config); err != nil {
		warnings = append(warnings, err.Error())
	}
	return cfg, warnings, nil
}

// readConfig reads a file. Its warnings name the keys that mean nothing, which
// BuildKit passes over in silence: most are typing errors.
func readConfig(path string) (cfg configuration, warnings []string, err error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return cfg, nil, err
	}
	if cfg.Config, err = config.Load(bytes.NewReader(content)); err != nil {
		return cfg, nil, fmt.Errorf("%s%s: %w", path, position(err), err)
	}
	if cfg.defaults, err = readDefaults(content); err != nil {
		return cfg, nil, fmt.Errorf("%s%s: [estargz] %w", path, position(err), err)
	}
	return cfg, unknownKeys(path, content), nil
}

// readDefaults reads our own section, where a key that means nothing is an error:
// no other daemon has a use for it.
func readDefaults(content []byte) (exporter.Defaults, error) {
	var section ownSection
	if err := toml.Unmarshal(content, &section); err != nil {
		return exporter.Defaults{}, err
	}
	values := make(map[string]string, len(section.EStargz))
	for key, value := range section.EStargz {
		switch value.(type) {
		case string, int64:
			values[key] = fmt.Sprint(value)
		default:
			return exporter.Defaults{}, fmt.Errorf("%s = %v: give a string or a whole number", key, value)
		}
	}
	return exporter.ParseDefaults(values)
}

func unknownKeys(path string, content []byte) []string {
	strict := toml.NewDecoder(bytes.NewReader(content)).DisallowUnknownFields()
	var missing *toml.StrictMissingError
	if err := strict.Decode(&struct {
		config.Config
		ownSection
	}{}); !errors.As(err, &missing) {
		return nil
	}
	warnings := make([]string, 0, len(missing.Errors))
	for _, e := range missing.Errors {
		row, _ := e.Position()
		warnings = append(warnings, fmt.Sprintf("%s:%d: unknown key %s is ignored", path, row, strings.Join(e.Key(), ".")))
	}
	return warnings
}

// position returns where in the file an error is, as a suffix to its name.
func position(err error) string {
	var at *toml.DecodeError
	if !errors.As(err, &at) {
		return ""
	}
	row, column := at.Position()
	return fmt.Sprintf(":%d:%d", row, column)
}

// deprecations carries old names over to new ones.
func deprecations(c *cli.Command, cfg *config.Config) (warnings []string) {
	var level string
	if cfg.Debug { //nolint:staticcheck
		level = "debug"
		warnings = append(warnings, `configuration key "debug" is deprecated: use level = "debug" in section [log]`)
	}
	if cfg.Trace { //nolint:staticcheck
		level = "trace"
		warnings = append(warnings, `configuration key "trace" is deprecated: use level = "trace" in section [log]`)
	}
	if cfg.Log.Level == "" {
		cfg.Log.Level = level
	}
	if c.IsSet(traceFlag) {
		warnings = append(warnings, "--trace is deprecated: use --log-level=trace")
	}
	return warnings
}

// configForHelp returns what --help shows as defaults: the default file's
// values. A file that cannot be read has no say in that, nor in --version; the
// daemon itself will complain about it.
func configForHelp() config.Config {
	cfg, _, err := readConfig(defaultConfigPath())
	if err != nil {
		cfg = configuration{}
	}
	fillDefaults(&cfg.Config)
	return cfg.Config
}
