package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// The manifests have what the API's schemas have, and refer to what there is.
func TestKubernetesManifests(t *testing.T) {
	needs(t)
	files, err := filepath.Glob("../deploy/kubernetes/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	run(t, "kubernetes", append([]string{"-check"}, files...)...)
}

// A kubernetes is a cluster of one node, see hack/peers/kubernetes.
type kubernetes struct {
	address string
	podman  *podman
}

func startKubernetes(t *testing.T) *kubernetes {
	t.Helper()
	port, err := freePort()
	require.NoError(t, err)
	dir := tempDir(t)
	require.NoError(t, os.Chmod(dir, 0o755))
	k := &kubernetes{address: fmt.Sprintf("127.0.0.1:%d", port), podman: newPodman(t)}
	args := append([]string{"-listen", k.address, "-dir", dir, "podman"}, k.podman.flags...)
	p, err := harness.Start(t.Context(), dir, "kubernetes", exec.Command(bin.Path("kubernetes"), args...), func() bool {
		_, err := http.Get("http://" + k.address)
		return err == nil
	})
	serve(t, p, err)
	config := filepath.Join(dir, "config")
	require.NoError(t, os.WriteFile(config, []byte(`{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": [{"name": "test", "cluster": {"server": "http://`+k.address+`"}}],
		"contexts": [{"name": "test", "context": {"cluster": "test", "namespace": "default"}}]
	}`), 0o600))
	t.Setenv("KUBECONFIG", config)
	return k
}

func (k *kubernetes) apply(t *testing.T, manifests string) {
	t.Helper()
	answer, err := http.Post("http://"+k.address+"/apply", "application/yaml", strings.NewReader(manifests))
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, answer.StatusCode, "%s", text)
}

// isReady tells whether the pod of a workload has answered its probes.
func (k *kubernetes) isReady(t *testing.T, workload string) bool {
	t.Helper()
	answer, err := http.Get("http://" + k.address + "/apis/apps/v1/namespaces/default/" + workload)
	require.NoError(t, err)
	defer answer.Body.Close()
	var object struct{ Status struct{ ReadyReplicas int } }
	require.NoError(t, json.NewDecoder(answer.Body).Decode(&object))
	return object.Status.ReadyReplicas == 1
}

// testKubernetesDriver builds with a daemon that buildx's kubernetes driver makes a
// workload for.
func testKubernetesDriver(t *testing.T, image, options string, flags ...string) {
	k := startKubernetes(t)
	d := clientsOf(t)
	config := filepath.Join(d.Dir, "buildkitd.toml")
	require.NoError(t, os.WriteFile(config, []byte("[worker.oci.labels]\n  configured = \"yes\"\n"), 0o600))
	d.buildx(t, append([]string{"create", "--name", "test", "--driver", "kubernetes", "--bootstrap",
		"--buildkitd-config", config, "--driver-opt", "image=" + image + "," + options}, flags...)...)
	inspected := d.buildx(t, "inspect")
	require.Regexp(t, `Status: +running`, inspected)
	require.Regexp(t, `configured: +yes`, inspected)
	built := repository(t) + ":latest"
	d.build(t, helloImage(t), "--output", estargz(built))
	require.Len(t, requireEStargz(t, built), 4)
	d.buildx(t, "rm", "test")
	require.Empty(t, k.podman.run(t, "ps", "--all", "--quiet"))
}

// testKubernetesManifest builds upon a lazy base with a daemon of our manifests, over
// TLS, and returns the registry's view of it.
func testKubernetesManifest(t *testing.T, image, file, workload string) (name string, g *gate) {
	k, keys := startKubernetes(t), tempDir(t)
	newAuthority(t).issue(t, keys, "server", "client")
	files := map[string][]byte{}
	for _, name := range []string{"ca.pem", "server.pem", "server-key.pem"} {
		data, err := os.ReadFile(filepath.Join(keys, name))
		require.NoError(t, err)
		files[name] = data
	}
	secret, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Secret", "metadata": map[string]string{"name": "buildkitd-tls"}, "data": files,
	})
	require.NoError(t, err)
	k.apply(t, string(secret))
	manifests, err := os.ReadFile(filepath.Join("..", "deploy", "kubernetes", file))
	require.NoError(t, err)
	port, err := freePort()
	require.NoError(t, err)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	k.apply(t, strings.NewReplacer(
		"registry.example/buildkitd-esgz:latest-rootless", image, "registry.example/buildkitd-esgz:latest", image,
		"0.0.0.0:1234", address, "1234", fmt.Sprint(port)).Replace(string(manifests)))
	eventually(t, func() bool { return k.isReady(t, workload) }, func() string { return k.podman.run(t, "ps", "--all") })

	name, g = pushLazy(t), newGate(t)
	d := clientsOf(t)
	d.buildx(t, "create", "--name", "test", "--driver", "remote", "--driver-opt",
		fmt.Sprintf("cacert=%s/ca.pem,cert=%s/client.pem,key=%s/client-key.pem", keys, keys, keys), "tcp://"+address)
	built := repository(t) + ":latest"
	d.build(t, upon(t, g.address+"/"+name, "cat /one | md5sum >/sum"), "--output", estargz(built))
	requireEStargz(t, built)
	return name, g
}
