package main

import (
	"slices"
	"strconv"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/sys/userns"
	"github.com/urfave/cli/v3"
)

const (
	configFlag         = "config"
	traceFlag          = "trace"
	saveCacheDebugFlag = "save-cache-debug"
)

// allSettings returns all flags of the daemon. Their order matters twice: it
// is that of --help, and a later one wins over an earlier one that changes the
// same field. def supplies the defaults that --help shows.
func allSettings(def config.Config) []setting {
	return slices.Concat(
		daemonSettings(def),
		logSettings(),
		listenSettings(def),
		featureSettings(),
		ociSettings(def),
		containerdSettings(def),
	)
}

func daemonSettings(def config.Config) []setting {
	return []setting{
		rootlessSetting(),
		{flag: &cli.StringFlag{
			Name:  configFlag,
			Usage: "path to config file",
			Value: defaultConfigPath(),
		}},
		text(&cli.StringFlag{
			Name:  "root",
			Usage: "path to state directory",
			Value: def.Root,
		}, func(cfg *config.Config) *string { return &cfg.Root }),
	}
}

// rootlessSetting is for both workers at once. In a user namespace it is the
// default even over the configuration file, which may be a rootful daemon's.
func rootlessSetting() setting {
	const name = "rootless"
	f := &cli.BoolFlag{
		Name:  name,
		Usage: "set all the default options to be compatible with rootless containers",
	}
	if userns.RunningInUserNS() {
		f.Usage += " (default: true)"
		f.Value = true
	}
	return setting{flag: f, apply: func(c *cli.Command, cfg *config.Config) error {
		if rootless := c.Bool(name); rootless || c.IsSet(name) {
			cfg.Workers.OCI.Rootless = rootless
			cfg.Workers.Containerd.Rootless = rootless
		}
		return nil
	}}
}

func logSettings() []setting {
	return []setting{
		logLevelSetting(&cli.BoolFlag{
			Name:  "debug",
			Usage: "enable debug output in logs",
		}),
		logLevelSetting(&cli.BoolFlag{
			Name:   traceFlag,
			Usage:  "enable trace output in logs (highly verbose, could affect performance)",
			Hidden: true,
		}),
		text(&cli.StringFlag{
			Name:  "log-format",
			Usage: "log formatter: json or text",
			Value: "text",
		}, func(cfg *config.Config) *string { return &cfg.Log.Format }),
		text(&cli.StringFlag{
			Name:    "log-level",
			Usage:   "set the log level",
			Value:   "info",
			Sources: cli.EnvVars("BUILDKITD_LOG_LEVEL"),
		}, func(cfg *config.Config) *string { return &cfg.Log.Level }),
	}
}

// logLevelSetting is a flag whose name is a log level. Given as false it
// changes nothing.
func logLevelSetting(f *cli.BoolFlag) setting {
	return whenGiven(f, func(c *cli.Command, cfg *config.Config) error {
		if c.Bool(f.Name) {
			cfg.Log.Level = f.Name
		}
		return nil
	})
}

func listenSettings(def config.Config) []setting {
	var group string
	if def.GRPC.GID != nil {
		group = strconv.Itoa(*def.GRPC.GID)
	}
	return []setting{
		list(&cli.StringSliceFlag{
			Name:  "addr",
			Usage: "listening address (socket or tcp)",
			Value: def.GRPC.Address[:1],
		}, func(cfg *config.Config) *[]string { return &cfg.GRPC.Address }),
		parsed(&cli.StringFlag{
			Name:  "group",
			Usage: "group (name or gid) which will own all Unix socket listening addresses",
			Value: group,
		}, setGroup),
		text(&cli.StringFlag{
			Name:    "debugaddr",
			Usage:   "debugging address (eg. 0.0.0.0:6060)",
			Value:   def.GRPC.DebugAddress,
			Sources: cli.EnvVars("BUILDKITD_DEBUGADDR"),
		}, func(cfg *config.Config) *string { return &cfg.GRPC.DebugAddress }),
		filled(&cli.StringFlag{
			Name:  "tlscert",
			Usage: "certificate file to use",
			Value: def.GRPC.TLS.Cert,
		}, func(cfg *config.Config) *string { return &cfg.GRPC.TLS.Cert }),
		filled(&cli.StringFlag{
			Name:  "tlskey",
			Usage: "key file to use",
			Value: def.GRPC.TLS.Key,
		}, func(cfg *config.Config) *string { return &cfg.GRPC.TLS.Key }),
		filled(&cli.StringFlag{
			Name:  "tlscacert",
			Usage: "ca certificate to verify clients",
			Value: def.GRPC.TLS.CA,
		}, func(cfg *config.Config) *string { return &cfg.GRPC.TLS.CA }),
	}
}

func featureSettings() []setting {
	return []setting{
		parsedList(&cli.StringSliceFlag{
			Name:  "allow-insecure-entitlement",
			Usage: "allows insecure entitlements e.g. network.host, security.insecure, device",
		}, setEntitlements),
		toggle(&cli.BoolFlag{
			Name:  "proxy-network",
			Usage: "enable proxy network enforcement for all builds",
		}, func(cfg *config.Config) *bool { return &cfg.ProxyNetwork }),
		text(&cli.StringFlag{
			Name:  "otel-socket-path",
			Usage: "OTEL collector trace socket path",
		}, func(cfg *config.Config) *string { return &cfg.OTEL.SocketPath }),
		optional(&cli.BoolFlag{
			Name:  "cdi-disabled",
			Usage: "disables support of the Container Device Interface (CDI)",
		}, func(cfg *config.Config) **bool { return &cfg.CDI.Disabled }),
		list(&cli.StringSliceFlag{
			Name:  "cdi-spec-dir",
			Usage: "list of directories to scan for CDI spec files",
		}, func(cfg *config.Config) *[]string { return &cfg.CDI.SpecDirs }),
		{flag: &cli.BoolFlag{
			Name:  saveCacheDebugFlag,
			Usage: "enable saving cache debug info",
		}},
	}
}
