package main

import (
	"github.com/containerd/containerd/v2/defaults"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/urfave/cli/v3"
)

func containerdSettings(all config.Config) []setting {
	def := all.Workers.Containerd
	ctd := func(cfg *config.Config) *config.ContainerdConfig { return &cfg.Workers.Containerd }
	return []setting{
		enabledSetting("containerd-worker", "enable containerd workers (true/false/auto)", def.Enabled,
			func(cfg *config.Config) **bool { return &ctd(cfg).Enabled }),
		text(&cli.StringFlag{
			Name:  "containerd-worker-addr",
			Usage: "containerd socket",
			Value: def.Address,
		}, func(cfg *config.Config) *string { return &ctd(cfg).Address }),
		labelsSetting("containerd-worker-labels",
			func(cfg *config.Config) *map[string]string { return &ctd(cfg).Labels }),
		list(&cli.StringSliceFlag{
			Name:   "containerd-worker-platform",
			Usage:  "override supported platforms for worker",
			Hidden: true,
		}, func(cfg *config.Config) *[]string { return &ctd(cfg).Platforms }),
		text(&cli.StringFlag{
			Name:   "containerd-worker-namespace",
			Usage:  "override containerd namespace",
			Value:  def.Namespace,
			Hidden: true,
		}, func(cfg *config.Config) *string { return &ctd(cfg).Namespace }),
		// The path and the options of the configuration belong to the runtime
		// that it names.
		parsed(&cli.StringFlag{
			Name:   "containerd-worker-runtime",
			Usage:  "override containerd runtime",
			Value:  def.Runtime.Name,
			Hidden: true,
		}, func(cfg *config.Config, name string) error {
			ctd(cfg).Runtime = config.ContainerdRuntime{Name: name}
			return nil
		}),
		text(&cli.StringFlag{
			Name:  "containerd-worker-net",
			Usage: "worker network type (auto, bridge, cni or host)",
			Value: def.Mode,
		}, func(cfg *config.Config) *string { return &ctd(cfg).Mode }),
		text(&cli.StringFlag{
			Name:  "containerd-cni-config-path",
			Usage: "path of cni config file",
			Value: def.CNIConfigPath,
		}, func(cfg *config.Config) *string { return &ctd(cfg).CNIConfigPath }),
		text(&cli.StringFlag{
			Name:  "containerd-cni-binary-dir",
			Usage: "path of cni binary files",
			Value: def.CNIBinaryPath,
		}, func(cfg *config.Config) *string { return &ctd(cfg).CNIBinaryPath }),
		number(&cli.IntFlag{
			Name:  "containerd-cni-pool-size",
			Usage: "size of cni network namespace pool",
			Value: def.CNIPoolSize,
		}, func(cfg *config.Config) *int { return &ctd(cfg).CNIPoolSize }),
		text(&cli.StringFlag{
			Name:  "containerd-worker-snapshotter",
			Usage: "snapshotter name to use",
			Value: defaults.DefaultSnapshotter,
		}, func(cfg *config.Config) *string { return &ctd(cfg).Snapshotter }),
		text(&cli.StringFlag{
			Name:  "containerd-worker-apparmor-profile",
			Usage: "set the name of the apparmor profile applied to containers",
		}, func(cfg *config.Config) *string { return &ctd(cfg).ApparmorProfile }),
		toggle(&cli.BoolFlag{
			Name:  "containerd-worker-selinux",
			Usage: "apply SELinux labels",
		}, func(cfg *config.Config) *bool { return &ctd(cfg).SELinux }),
		number(&cli.IntFlag{
			Name:  "containerd-max-parallelism",
			Usage: "limit the number of parallel build steps that can run at the same time",
			Value: def.MaxParallelism,
		}, func(cfg *config.Config) *int { return &ctd(cfg).MaxParallelism }),
		workerRootlessSetting("containerd-worker-rootless",
			func(cfg *config.Config) *bool { return &ctd(cfg).Rootless }),
		gcSetting("containerd-worker-gc", def.GC,
			func(cfg *config.Config) **bool { return &ctd(cfg).GC }),
		keepStorageSetting("containerd-worker-gc-keepstorage", all, def.GCConfig,
			func(cfg *config.Config) *config.GCConfig { return &ctd(cfg).GCConfig }),
	}
}
