package worker

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	ctd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	bkworker "github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/containerd"
	"github.com/pelletier/go-toml/v2"
)

// containerdTimeout bounds the connection attempt: containerd may be starting
// at the same time as the daemon.
const containerdTimeout = 60 * time.Second

// NewContainerd returns a worker that uses the snapshots, content and runtime
// of a containerd.
func NewContainerd(ctx context.Context, cfg config.ContainerdConfig, host Host, opt Options) (bkworker.Worker, error) {
	runtime, err := containerdRuntime(cfg.Runtime)
	if err != nil {
		return nil, err
	}
	wopt, err := containerd.NewWorkerOpt(containerd.WorkerOptions{
		Root:            host.Root,
		Address:         containerdAddress(cfg),
		SnapshotterName: cmp.Or(cfg.Snapshotter, defaults.DefaultSnapshotter),
		Namespace:       cfg.Namespace,
		CgroupParent:    cfg.DefaultCgroupParent,
		Rootless:        cfg.Rootless,
		Labels:          cfg.Labels,
		DNS:             dns(host.DNS),
		NetworkOpt:      networks(host.Root, cfg.NetworkConfig, cfg.Rootless),
		ApparmorProfile: cfg.ApparmorProfile,
		Selinux:         cfg.SELinux,
		ParallelismSem:  parallelism(cfg.MaxParallelism),
		TraceSocket:     host.TraceSocket,
		Runtime:         runtime,
		CDIManager:      host.CDI,
	}, ctd.WithTimeout(containerdTimeout))
	if err != nil {
		return nil, err
	}
	if err := common(&wopt, host, cfg.GCConfig, cfg.Platforms); err != nil {
		return nil, fmt.Errorf("worker.containerd: %w", err)
	}
	wopt.ContentStore = discardFailed(wopt.ContentStore)
	return newWorker(ctx, wopt, opt)
}

// ContainerdAvailable says why a containerd worker cannot work here, or nil.
func ContainerdAvailable(ctx context.Context, cfg config.ContainerdConfig) error {
	address := containerdAddress(cfg)
	if strings.HasPrefix(address, "tcp://") {
		return nil
	}
	if _, err := os.Stat(address); os.IsNotExist(err) {
		return fmt.Errorf("%q does not exist", address)
	}
	client, err := ctd.New(address, ctd.WithDefaultNamespace(cfg.Namespace))
	if err != nil {
		return fmt.Errorf("connecting to %q: %w", address, err)
	}
	defer client.Close()
	if _, err := client.Server(ctx); err != nil {
		return fmt.Errorf("asking %q for its identity: %w", address, err)
	}
	return nil
}

// containerdAddress is a path: containerd's client puts the scheme before it,
// and would look for unix://unix:///run/... otherwise.
func containerdAddress(cfg config.ContainerdConfig) string {
	return strings.TrimPrefix(cfg.Address, "unix://")
}

func containerdRuntime(cfg config.ContainerdRuntime) (*containerd.RuntimeInfo, error) {
	if cfg.Name == "" {
		return nil, nil
	}
	options := runtimeOptions(cfg.Name)
	if err := retype(cfg.Options, options); err != nil {
		return nil, fmt.Errorf("worker.containerd.runtime.options: %w", err)
	}
	return &containerd.RuntimeInfo{Name: cfg.Name, Path: cfg.Path, Options: options}, nil
}

// runtimeOptions returns an empty value of the type that a runtime expects.
func runtimeOptions(name string) any {
	if name == plugins.RuntimeRuncV2 {
		return &runcoptions.Options{}
	}
	return &runtimeoptions.Options{}
}

// retype fills target from values that were read without knowing their type.
func retype(values map[string]any, target any) error {
	text, err := toml.Marshal(values)
	if err != nil {
		return err
	}
	return toml.Unmarshal(text, target)
}
