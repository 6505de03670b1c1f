package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"

	ctd "github.com/containerd/containerd/v2/defaults"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/appdefaults"
	"github.com/moby/sys/userns"
)

const defaultContainerdNamespace = "buildkit"

// setDefaults completes the configuration and prepares the directory that the
// default address needs.
func setDefaults(cfg *config.Config) error {
	fillDefaults(cfg)
	if !rootlessPaths() {
		return nil
	}
	if err := appdefaults.EnsureUserAddressDir(); err != nil {
		return fmt.Errorf("directory for the default address: %w", err)
	}
	return nil
}

// fillDefaults gives values to what is empty and touches nothing outside cfg.
// Platforms stay empty: which ones this machine can run is for the workers to
// find out.
func fillDefaults(cfg *config.Config) {
	rootless := rootlessPaths()
	address := appdefaults.Address
	if rootless {
		address = appdefaults.UserAddress()
	}
	fill(&cfg.Root, defaultRoot())
	if len(cfg.GRPC.Address) == 0 {
		cfg.GRPC.Address = []string{address}
	}
	fill(&cfg.OTEL.SocketPath, traceSocketPath(cfg.Root))
	if len(cfg.CDI.SpecDirs) == 0 {
		cfg.CDI.SpecDirs = appdefaults.CDISpecDirs
	}
	fillWorkerDefaults(&cfg.Workers.OCI, &cfg.Workers.Containerd, rootless)
}

func fillWorkerDefaults(oci *config.OCIConfig, containerd *config.ContainerdConfig, rootless bool) {
	fill(&oci.Snapshotter, "auto")
	fillNetworkDefaults(&oci.NetworkConfig, rootless)
	fill(&containerd.Address, ctd.DefaultAddress)
	fill(&containerd.Namespace, defaultContainerdNamespace)
	if containerd.Runtime.Name == "" {
		containerd.Runtime = config.ContainerdRuntime{Name: ctd.DefaultRuntime}
	}
	fillNetworkDefaults(&containerd.NetworkConfig, rootless)
}

func fillNetworkDefaults(network *config.NetworkConfig, rootless bool) {
	cniConfig := appdefaults.DefaultCNIConfigPath
	if rootless {
		cniConfig = appdefaults.UserCNIConfigPath
	}
	fill(&network.Mode, "auto")
	fill(&network.CNIConfigPath, cniConfig)
	fill(&network.CNIBinaryPath, appdefaults.DefaultCNIBinDir)
	fill(&network.BridgeName, appdefaults.BridgeName)
	fill(&network.BridgeSubnet, appdefaults.BridgeSubnet)
}

func defaultRoot() string {
	if rootlessPaths() {
		return appdefaults.UserRoot()
	}
	return appdefaults.Root
}

// traceSocketPath is where the daemon with that root listens for spans. Each has
// a socket of its own: it goes when the daemon ends, and RUN steps need it.
// BuildKit has one for all daemons of a machine, whose path the daemon with the
// default root keeps.
func traceSocketPath(root string) string {
	if root == defaultRoot() {
		return appdefaults.TraceSocketPath(rootlessPaths())
	}
	return filepath.Join(root, "otel-grpc.sock")
}

func fill(field *string, value string) { *field = cmp.Or(*field, value) }

func defaultConfigPath() string {
	dir := appdefaults.ConfigDir
	if rootlessPaths() {
		dir = appdefaults.UserConfigDir()
	}
	return filepath.Join(dir, "buildkitd.toml")
}

// rootlessPaths says whether the defaults are those of a user's own daemon. In
// a user namespace whose environment still says USER=root, they are not.
func rootlessPaths() bool {
	user := os.Getenv("USER")
	return userns.RunningInUserNS() && user != "" && user != "root"
}
