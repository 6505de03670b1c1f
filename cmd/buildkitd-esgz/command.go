package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/moby/buildkit/util/appcontext"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/profiler"
	"github.com/moby/buildkit/version"
	"github.com/urfave/cli/v3"

	"github.com/buildkitd-esgz/buildkitd-esgz/cmd/buildkitd-esgz/inspect"
)

// init tells the command line package how to print --version, for which it has
// nothing but a variable. buildx reads the third of exactly four fields.
func init() {
	cli.VersionPrinter = func(c *cli.Command) {
		fmt.Fprintln(c.Root().Writer, c.Name, version.Package, c.Version, version.Revision)
	}
}

// newCommand returns the command line.
func newCommand() *cli.Command {
	settings := allSettings(configForHelp())
	command := &cli.Command{
		Name:    programName,
		Usage:   "build daemon",
		Version: version.Version,
		Flags:   flagsOf(settings),
		// Labels and the like may contain commas.
		DisableSliceFlagSeparator: true,
		Commands:                  []*cli.Command{inspect.Command()},
		HideHelpCommand:           true,
		Action: func(_ context.Context, c *cli.Command) error {
			return start(appcontext.Context(), c, settings)
		},
	}
	profiler.Attach(command)
	return command
}

// start reads the configuration, sets up the process by it and runs the daemon.
func start(ctx context.Context, c *cli.Command, settings []setting) error {
	if os.Geteuid() > 0 {
		return errors.New("must run as root, or as the mapped root of a user namespace: for rootless mode use RootlessKit")
	}
	cfg, warnings, err := loadConfig(c, settings)
	if err != nil {
		return err
	}
	if err := setUpLogging(cfg.Log); err != nil {
		return err
	}
	for _, warning := range warnings {
		bklog.G(ctx).Warn(warning)
	}
	if err := setUpSystem(cfg.System); err != nil {
		return err
	}
	return run(ctx, cfg, c.Bool(saveCacheDebugFlag))
}
