package worker

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/winlayers"
	bkworker "github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/runc"
	"github.com/moby/sys/user"
)

// NewOCI returns a worker that runs build steps with an OCI runtime such as
// runc, and keeps its snapshots and content below host.Root.
func NewOCI(ctx context.Context, cfg config.OCIConfig, host Host, opt Options) (bkworker.Worker, error) {
	mode, err := processMode(cfg)
	if err != nil {
		return nil, err
	}
	idmap, err := identityMapping(cfg.UserRemapUnsupported)
	if err != nil {
		return nil, err
	}
	snapshots, stargz, err := newSnapshots(cfg, host)
	if err != nil {
		return nil, err
	}
	snapshots.New = withoutLeftovers(cfg, snapshots.New)
	wopt, err := runc.NewWorkerOpt(
		host.Root, snapshots, cfg.Rootless, mode, cfg.Labels, idmap,
		networks(host.Root, cfg.NetworkConfig, cfg.Rootless), dns(host.DNS),
		cfg.Binary, cfg.ApparmorProfile, cfg.SELinux, parallelism(cfg.MaxParallelism),
		host.TraceSocket, cfg.DefaultCgroupParent, host.CDI,
	)
	if err != nil {
		return nil, err
	}
	if err := common(&wopt, host, cfg.GCConfig, cfg.Platforms); err != nil {
		return nil, fmt.Errorf("worker.oci: %w", err)
	}
	wopt.ContentStore = discardFailed(wopt.ContentStore)
	wopt.Differ = winlayers.NewWalkingDiffWithWindows(wopt.ContentStore, walking.NewWalkingDiff(wopt.ContentStore)) // as BuildKit has it
	if err := deleteOrphans(ctx, wopt.LeaseManager, wopt.MetadataStore); err != nil {
		return nil, fmt.Errorf("snapshots that an earlier run left: %w", err)
	}
	if stargz != nil {
		opt.layers, opt.show, opt.host = stargz.layers, stargz.show, host
	}
	return newWorker(ctx, wopt, opt)
}

// OCIAvailable says why an OCI worker cannot work here, or nil.
//
// The configured runtime counts like the two that BuildKit looks for itself:
// with crun alone on the machine, "auto" means yes.
func OCIAvailable(cfg config.OCIConfig) error {
	_, err := runtime(cfg)
	return err
}

// runtime finds the program that runs containers.
func runtime(cfg config.OCIConfig) (string, error) {
	candidates := []string{"buildkit-runc", "runc"}
	if cfg.Binary != "" {
		candidates = []string{cfg.Binary}
	}
	for _, name := range candidates {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s found in PATH", strings.Join(candidates, " or "))
}

func processMode(cfg config.OCIConfig) (oci.ProcessMode, error) {
	if !cfg.NoProcessSandbox {
		return oci.ProcessSandbox, nil
	}
	if !cfg.Rootless {
		return 0, errors.New("worker.oci.noProcessSandbox (--oci-worker-no-process-sandbox) is for rootless mode only: set worker.oci.rootless (--rootless) as well")
	}
	bklog.L.Warn("no process sandbox: build containers share the daemon's PID namespace and can kill or trace its processes; use this only inside an unprivileged container")
	return oci.NoProcessSandbox, nil
}

// identityMapping returns the subordinate ID ranges of a user, nil for no name.
func identityMapping(name string) (*user.IdentityMapping, error) {
	if name == "" {
		return nil, nil
	}
	if before, after, found := strings.Cut(name, ":"); found {
		if strings.Contains(after, ":") {
			return nil, fmt.Errorf("worker.oci.userRemapUnsupported %q: want a user name, or user:group", name)
		}
		name = before
	}
	mapping, err := user.LoadIdentityMapping(name)
	if err != nil {
		return nil, fmt.Errorf("worker.oci.userRemapUnsupported: ID ranges of %q: %w", name, err)
	}
	return &mapping, nil
}
