package harness

import (
	"context"
	_ "embed"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// registryConfig leaves the address and the directory to the environment.
//
//go:embed registry.yml
var registryConfig []byte

// A Registry is an empty one, on a port of loopback, that speaks plain HTTP.
type Registry struct {
	*Process
	Address string // host:port
}

// StartRegistry starts a registry with its files in a directory.
func StartRegistry(ctx context.Context, tools Tools, dir string) (*Registry, error) {
	config := filepath.Join(dir, "registry.yml")
	if err := os.WriteFile(config, registryConfig, 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(tools.Path("docker-registry"), "serve", config)
	cmd.Env = append(os.Environ(),
		// It chooses a port, and logs it.
		"REGISTRY_LOG_LEVEL=info",
		"REGISTRY_HTTP_ADDR=127.0.0.1:0",
		"REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY="+filepath.Join(dir, "registry"))
	name := filepath.Join(dir, "registry.log")
	earlier, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	r := &Registry{}
	r.Process, err = Start(ctx, dir, "registry", cmd, func() bool {
		log, err := os.ReadFile(name)
		if err != nil {
			return false
		}
		if found := listening.FindSubmatch(log[len(earlier):]); found != nil {
			r.Address = string(found[1])
		}
		return r.Address != ""
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// listening is logged when connections are accepted.
var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)
