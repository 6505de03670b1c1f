package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v3"
)

// roleVariable makes the test binary something else than a test: the daemon,
// or a process that takes over sockets.
const roleVariable = "BUILDKITD_ESGZ_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "daemon":
		main()
		os.Exit(0)
	case "activated":
		os.Exit(serveActivated(os.Args[1:]))
	}
	// Whoever runs the tests may have these for a daemon of their own.
	os.Unsetenv("BUILDKITD_LOG_LEVEL")
	os.Unsetenv("BUILDKITD_DEBUGADDR")
	os.Exit(m.Run())
}

// as returns a command that runs the test binary in a role.
func as(t *testing.T, role string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	return cmd
}

// given returns the configuration that a command line results in.
func given(t *testing.T, args ...string) (config.Config, error) {
	t.Helper()
	cfg, _, err := givenWithWarnings(t, args...)
	return cfg.Config, err
}

func givenWithWarnings(t *testing.T, args ...string) (cfg configuration, warnings []string, err error) {
	t.Helper()
	settings := allSettings(configForHelp())
	command := &cli.Command{
		Name:                      programName,
		Flags:                     flagsOf(settings),
		DisableSliceFlagSeparator: true,
		Writer:                    io.Discard,
		ErrWriter:                 io.Discard,
		Action: func(_ context.Context, c *cli.Command) error {
			cfg, warnings, err = loadConfig(c, settings)
			return err
		},
	}
	err = command.Run(t.Context(), append([]string{programName}, args...))
	return cfg, warnings, err
}
