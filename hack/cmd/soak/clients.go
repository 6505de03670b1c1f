package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/cli/cli/config/types"
	"github.com/moby/buildkit/session/auth/authprovider"
)

// logIn gives the password to all clients.
func (w *world) logIn() error {
	type auth struct {
		Auth string `json:"auth"`
	}
	auths := map[string]auth{}
	for _, d := range w.daemons {
		auths[d.gate.address] = auth{base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}
	}
	text, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		return err
	}
	// BuildKit's client looks there for other things, too.
	dir := filepath.Join(w.opt.dir, "docker")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Setenv("DOCKER_CONFIG", dir); err != nil {
		return err
	}
	w.logins = authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: func(context.Context, string, []string, authprovider.ExpireCachedAuthCheck) (types.AuthConfig, error) {
			return types.AuthConfig{Username: user, Password: password}, nil
		},
	})
	return os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600)
}

// killClient kills a client in the middle of a build.
func (d *daemon) killClient(r *rand.Rand) error {
	dir, err := d.w.temp()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	im := d.w.pick(r)
	output := "type=local,dest=" + filepath.Join(dir, "out")
	if r.IntN(2) == 0 {
		output = fmt.Sprintf("type=image,push=true,name=%s/%s,%s", d.gate.address, d.w.newName(), outputs[r.IntN(len(outputs))])
	}
	dockerfile := d.reads(im, slices.Sorted(maps.Keys(im.sums)), r.IntN(3))
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		return err
	}
	cmd := d.Client(context.Background(), "buildctl", "build", "--frontend", "dockerfile.v0",
		"--local", "context="+dir, "--local", "dockerfile="+dir, "--output", output)
	if err := cmd.Start(); err != nil {
		return err
	}
	time.Sleep(time.Duration(r.Int64N(int64(3 * time.Second))))
	_ = cmd.Process.Kill()
	if err := cmd.Wait(); err == nil {
		log.Printf("%s: the client was done before it was killed", d.name)
	}
	return nil
}

// mustRefuseSecond starts another daemon upon the state of one that runs.
func (d *daemon) mustRefuseSecond() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := d.Command(ctx).CombinedOutput()
	if err == nil || ctx.Err() != nil || !strings.Contains(string(out), "another daemon is running on this state directory") {
		log.Fatalf("seed %d: a second %s: %v\n%s", d.w.opt.seed, d.name, err, out)
	}
}
