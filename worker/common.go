package worker

import (
	"fmt"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/util/archutil"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/disk"
	"github.com/moby/buildkit/util/network/cniprovider"
	"github.com/moby/buildkit/util/network/netproviders"
	"github.com/moby/buildkit/worker/base"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
)

// common sets what BuildKit's two constructors leave to their caller.
func common(wopt *base.WorkerOpt, host Host, gc config.GCConfig, names []string) error {
	supported, err := parsePlatforms(names)
	if err != nil {
		return err
	}
	if len(supported) > 0 {
		wopt.Platforms = supported
	}
	wopt.GCPolicy = gcPolicy(gc, host.Root)
	wopt.BuildkitVersion = host.Version
	wopt.RegistryHosts = host.Registries
	return nil
}

// parsePlatforms returns the named platforms, or those that this machine can
// run if names is nil. An empty list that is not nil leaves the choice to
// BuildKit's worker.
func parsePlatforms(names []string) ([]ocispecs.Platform, error) {
	if names == nil {
		return normalized(archutil.SupportedPlatforms(false)), nil
	}
	parsed, err := platforms.ParseAll(names)
	if err != nil {
		return nil, fmt.Errorf("platforms %q: %w", names, err)
	}
	return normalized(parsed), nil
}

func normalized(in []ocispecs.Platform) []ocispecs.Platform {
	out := make([]ocispecs.Platform, len(in))
	for i, p := range in {
		out[i] = platforms.Normalize(p)
	}
	return out
}

// gcPolicy returns the rules of automatic garbage collection, none if disabled.
func gcPolicy(cfg config.GCConfig, root string) []client.PruneInfo {
	if cfg.GC != nil && !*cfg.GC {
		return nil
	}
	// Without the size of the disk, BuildKit falls back to fixed amounts.
	size, err := disk.GetDiskStat(root)
	if err != nil {
		bklog.L.WithError(err).Warnf("size of the disk of %s unknown, percentages in the garbage collection policy are replaced by defaults", root)
	}
	rules := cfg.GCPolicy
	if len(rules) == 0 {
		rules = config.DefaultGCPolicy(cfg, size)
	}
	policy := make([]client.PruneInfo, len(rules))
	for i, rule := range rules {
		policy[i] = pruneInfo(rule, size)
	}
	return policy
}

func pruneInfo(rule config.GCPolicy, size disk.DiskStat) client.PruneInfo {
	reserved := rule.ReservedSpace
	if reserved == (config.DiskSpace{}) {
		//lint:ignore SA1019 the name before BuildKit 0.17
		reserved = rule.KeepBytes
	}
	return client.PruneInfo{
		Filter:        rule.Filters,
		All:           rule.All,
		KeepDuration:  rule.KeepDuration.Duration,
		ReservedSpace: reserved.AsBytes(size),
		MaxUsedSpace:  rule.MaxUsedSpace.AsBytes(size),
		MinFreeSpace:  rule.MinFreeSpace.AsBytes(size),
	}
}

// networks maps the configuration to BuildKit's. A rootless daemon cannot set
// up container networks by itself, so there "auto" means the host's network,
// which is RootlessKit's.
func networks(root string, cfg config.NetworkConfig, rootless bool) netproviders.Opt {
	mode := cfg.Mode
	if rootless && mode == "auto" {
		mode = "host"
	}
	return netproviders.Opt{
		Mode: mode,
		CNI: cniprovider.Opt{
			Root:         root,
			ConfigPath:   cfg.CNIConfigPath,
			BinaryDir:    cfg.CNIBinaryPath,
			PoolSize:     cfg.CNIPoolSize,
			BridgeName:   cfg.BridgeName,
			BridgeSubnet: cfg.BridgeSubnet,
		},
	}
}

func dns(cfg *config.DNSConfig) *oci.DNSConfig {
	if cfg == nil {
		return nil
	}
	return &oci.DNSConfig{
		Nameservers:   cfg.Nameservers,
		Options:       cfg.Options,
		SearchDomains: cfg.SearchDomains,
	}
}

// parallelism returns what limits concurrent build steps, nil for no limit.
func parallelism(limit int) *semaphore.Weighted {
	if limit <= 0 {
		return nil
	}
	return semaphore.NewWeighted(int64(limit))
}
