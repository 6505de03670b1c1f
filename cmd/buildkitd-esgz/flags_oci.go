package main

import (
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/urfave/cli/v3"
)

func ociSettings(all config.Config) []setting {
	def := all.Workers.OCI
	oci := func(cfg *config.Config) *config.OCIConfig { return &cfg.Workers.OCI }
	return []setting{
		enabledSetting("oci-worker", "enable oci workers (true/false/auto)", def.Enabled,
			func(cfg *config.Config) **bool { return &oci(cfg).Enabled }),
		labelsSetting("oci-worker-labels",
			func(cfg *config.Config) *map[string]string { return &oci(cfg).Labels }),
		text(&cli.StringFlag{
			Name:  "oci-worker-snapshotter",
			Usage: "name of snapshotter (overlayfs, native, etc.)",
			Value: def.Snapshotter,
		}, func(cfg *config.Config) *string { return &oci(cfg).Snapshotter }),
		text(&cli.StringFlag{
			Name:  "oci-worker-proxy-snapshotter-path",
			Usage: "address of proxy snapshotter socket (do not include 'unix://' prefix)",
		}, func(cfg *config.Config) *string { return &oci(cfg).ProxySnapshotterPath }),
		list(&cli.StringSliceFlag{
			Name:  "oci-worker-platform",
			Usage: "override supported platforms for worker",
		}, func(cfg *config.Config) *[]string { return &oci(cfg).Platforms }),
		text(&cli.StringFlag{
			Name:  "oci-worker-net",
			Usage: "worker network type (auto, bridge, cni or host)",
			Value: def.Mode,
		}, func(cfg *config.Config) *string { return &oci(cfg).Mode }),
		// buildkitd 0.33 reads the value of this one from a flag that does not
		// exist, so that giving it clears the path.
		text(&cli.StringFlag{
			Name:  "oci-cni-config-path",
			Usage: "path of cni config file",
			Value: def.CNIConfigPath,
		}, func(cfg *config.Config) *string { return &oci(cfg).CNIConfigPath }),
		text(&cli.StringFlag{
			Name:  "oci-cni-binary-dir",
			Usage: "path of cni binary files",
			Value: def.CNIBinaryPath,
		}, func(cfg *config.Config) *string { return &oci(cfg).CNIBinaryPath }),
		number(&cli.IntFlag{
			Name:  "oci-cni-pool-size",
			Usage: "size of cni network namespace pool",
			Value: def.CNIPoolSize,
		}, func(cfg *config.Config) *int { return &oci(cfg).CNIPoolSize }),
		text(&cli.StringFlag{
			Name:  "oci-worker-binary",
			Usage: "name of specified oci worker binary",
			Value: def.Binary,
		}, func(cfg *config.Config) *string { return &oci(cfg).Binary }),
		text(&cli.StringFlag{
			Name:  "oci-worker-apparmor-profile",
			Usage: "set the name of the apparmor profile applied to containers",
		}, func(cfg *config.Config) *string { return &oci(cfg).ApparmorProfile }),
		toggle(&cli.BoolFlag{
			Name:  "oci-worker-selinux",
			Usage: "apply SELinux labels",
		}, func(cfg *config.Config) *bool { return &oci(cfg).SELinux }),
		number(&cli.IntFlag{
			Name:  "oci-max-parallelism",
			Usage: "limit the number of parallel build steps that can run at the same time",
			Value: def.MaxParallelism,
		}, func(cfg *config.Config) *int { return &oci(cfg).MaxParallelism }),
		workerRootlessSetting("oci-worker-rootless",
			func(cfg *config.Config) *bool { return &oci(cfg).Rootless }),
		toggle(&cli.BoolFlag{
			Name:  "oci-worker-no-process-sandbox",
			Usage: "use the host PID namespace and procfs (WARNING: allows build containers to kill (and potentially ptrace) an arbitrary process in the host namespace)",
		}, func(cfg *config.Config) *bool { return &oci(cfg).NoProcessSandbox }),
		gcSetting("oci-worker-gc", def.GC,
			func(cfg *config.Config) **bool { return &oci(cfg).GC }),
		keepStorageSetting("oci-worker-gc-keepstorage", all, def.GCConfig,
			func(cfg *config.Config) *config.GCConfig { return &oci(cfg).GCConfig }),
	}
}
