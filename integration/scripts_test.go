package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A script ends containers when it exits, but none of the user's own containerd.
func TestScriptsLeaveContainers(t *testing.T) {
	cache, called := t.TempDir(), filepath.Join(t.TempDir(), "called")
	require.NoError(t, os.Mkdir(filepath.Join(cache, "bin"), 0o755))
	ctr := "#!/bin/sh\necho \"$CONTAINERD_NAMESPACE $@\" >>" + called + "\n"
	require.NoError(t, os.WriteFile(filepath.Join(cache, "bin", "ctr"), []byte(ctr), 0o755))
	run := func(script string) {
		cmd := exec.Command("bash", "-c", ". ../hack/lib.sh\n"+script)
		cmd.Env = append(os.Environ(), "BUILDKITD_ESGZ_CACHE="+cache,
			"CONTAINERD_ADDRESS=/run/users/containerd.sock", "CONTAINERD_NAMESPACE=k8s.io")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	run("")
	require.NoFileExists(t, called)
	run("export CONTAINERD_ADDRESS=ours")
	written, err := os.ReadFile(called)
	require.NoError(t, err)
	require.Equal(t, " tasks ls -q\n", string(written))
}
