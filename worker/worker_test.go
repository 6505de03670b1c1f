package worker

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/exporter"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/util/disk"
	"github.com/moby/buildkit/worker/base"
	"github.com/stretchr/testify/require"
)

// wrapped is an exporter that remembers what it stands for.
type wrapped struct {
	exporter.Exporter
	name string
}

func TestExportersAreWrapped(t *testing.T) {
	plain := &decorated{Worker: &base.Worker{}}
	e, err := plain.Exporter(client.ExporterLocal, nil)
	require.NoError(t, err)
	require.NotNil(t, e)

	store := &containerdsnapshot.Store{}
	d := &decorated{Worker: &base.Worker{WorkerOpt: base.WorkerOpt{ContentStore: store}}, opt: Options{
		WrapExporter: func(name string, e exporter.Exporter, cs content.Store) exporter.Exporter {
			require.Same(t, store, cs)
			return &wrapped{Exporter: e, name: name}
		},
	}}
	e, err = d.Exporter(client.ExporterLocal, nil)
	require.NoError(t, err)
	require.Equal(t, client.ExporterLocal, e.(*wrapped).name)
	require.NotNil(t, e.(*wrapped).Exporter)

	_, err = d.Exporter("unknown", nil)
	require.ErrorContains(t, err, `exporter "unknown" could not be found`)
}

func TestPlatforms(t *testing.T) {
	detected, err := parsePlatforms(nil)
	require.NoError(t, err)
	require.NotEmpty(t, detected)

	none, err := parsePlatforms([]string{})
	require.NoError(t, err)
	require.Empty(t, none)

	named, err := parsePlatforms([]string{"linux/x86_64", "linux/arm64/v8"})
	require.NoError(t, err)
	require.Equal(t, "amd64", named[0].Architecture)
	require.Empty(t, named[1].Variant, "normalized")

	_, err = parsePlatforms([]string{"linux/amd64", "a/b/c/d"})
	require.ErrorContains(t, err, "a/b/c/d")
}

func TestGCPolicy(t *testing.T) {
	off := false
	require.Nil(t, gcPolicy(config.GCConfig{GC: &off}, t.TempDir()))

	byDefault := gcPolicy(config.GCConfig{GCMaxUsedSpace: config.DiskSpace{Bytes: 5}}, t.TempDir())
	require.Len(t, byDefault, 4)
	require.Equal(t, int64(5), byDefault[3].MaxUsedSpace)
	require.True(t, byDefault[3].All)

	rules := []config.GCPolicy{{KeepBytes: config.DiskSpace{Bytes: 7}, Filters: []string{"type==regular"}}}
	require.Equal(t, []client.PruneInfo{{ReservedSpace: 7, Filter: []string{"type==regular"}}},
		gcPolicy(config.GCConfig{GCPolicy: rules}, t.TempDir()))

	half := pruneInfo(config.GCPolicy{MinFreeSpace: config.DiskSpace{Percentage: 50}}, disk.DiskStat{Total: 100 << 30})
	require.Equal(t, int64(51e9), half.MinFreeSpace)
}

func TestNetworks(t *testing.T) {
	cfg := config.NetworkConfig{
		Mode: "auto", CNIConfigPath: "/c", CNIBinaryPath: "/b", CNIPoolSize: 3, BridgeName: "br", BridgeSubnet: "10.0.0.0/8",
	}
	got := networks("/root", cfg, false)
	require.Equal(t, "auto", got.Mode)
	require.Equal(t, "/root", got.CNI.Root)
	require.Equal(t, []string{"/c", "/b", "br", "10.0.0.0/8"},
		[]string{got.CNI.ConfigPath, got.CNI.BinaryDir, got.CNI.BridgeName, got.CNI.BridgeSubnet})
	require.Equal(t, 3, got.CNI.PoolSize)

	require.Equal(t, "host", networks("/root", cfg, true).Mode)
	cfg.Mode = "cni"
	require.Equal(t, "cni", networks("/root", cfg, true).Mode)
}

func TestProcessMode(t *testing.T) {
	mode, err := processMode(config.OCIConfig{})
	require.NoError(t, err)
	require.Equal(t, oci.ProcessSandbox, mode)
	mode, err = processMode(config.OCIConfig{NoProcessSandbox: true, Rootless: true})
	require.NoError(t, err)
	require.Equal(t, oci.NoProcessSandbox, mode)
	_, err = processMode(config.OCIConfig{NoProcessSandbox: true})
	require.ErrorContains(t, err, "--oci-worker-no-process-sandbox")
}

func TestOCIAvailable(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	require.EqualError(t, OCIAvailable(config.OCIConfig{}), "no buildkit-runc or runc found in PATH")
	require.NoError(t, os.WriteFile(filepath.Join(bin, "crun"), nil, 0o700))
	require.Error(t, OCIAvailable(config.OCIConfig{}))
	require.NoError(t, OCIAvailable(config.OCIConfig{Binary: "crun"}))
	require.NoError(t, os.WriteFile(filepath.Join(bin, "buildkit-runc"), nil, 0o700))
	require.NoError(t, OCIAvailable(config.OCIConfig{}))
	require.EqualError(t, OCIAvailable(config.OCIConfig{Binary: "youki"}), "no youki found in PATH")
}

func TestContainerdAvailable(t *testing.T) {
	err := ContainerdAvailable(t.Context(), config.ContainerdConfig{Address: "unix:///does/not/exist"})
	require.EqualError(t, err, `"/does/not/exist" does not exist`)

	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	l.Close()
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorContains(t, ContainerdAvailable(ctx, config.ContainerdConfig{Address: path}), path)
}

func TestContainerdRuntime(t *testing.T) {
	runtime, err := containerdRuntime(config.ContainerdRuntime{
		Name: "io.containerd.runc.v2", Path: "/shim", Options: map[string]any{"BinaryName": "crun"},
	})
	require.NoError(t, err)
	require.Equal(t, "/shim", runtime.Path)
	require.Contains(t, runtime.Options.(interface{ String() string }).String(), "crun")

	_, err = containerdRuntime(config.ContainerdRuntime{
		Name: "io.containerd.runc.v2", Options: map[string]any{"BinaryName": 5},
	})
	require.ErrorContains(t, err, "worker.containerd.runtime.options")

	runtime, err = containerdRuntime(config.ContainerdRuntime{})
	require.NoError(t, err)
	require.Nil(t, runtime)
}

func TestIdentityMapping(t *testing.T) {
	mapping, err := identityMapping("")
	require.NoError(t, err)
	require.Nil(t, mapping)
	_, err = identityMapping("a:b:c")
	require.ErrorContains(t, err, `worker.oci.userRemapUnsupported "a:b:c"`)
	_, err = identityMapping("no-such-user:group")
	require.ErrorContains(t, err, `ID ranges of "no-such-user"`)
}
