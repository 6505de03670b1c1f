package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
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

// What two runs make at the same time is made once, and is whole.
func TestScriptsSideBySide(t *testing.T) {
	needs(t)
	cache := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(cache, "bin"), 0o755))
	const debootstrap = `#!/bin/sh
for root; do :; done
mkdir -p "$root/etc" "$root/var/log"
seq 100000 >"$root/etc/numbers"
echo called >>"$BUILDKITD_ESGZ_CACHE/calls"
`
	require.NoError(t, os.WriteFile(filepath.Join(cache, "bin", "debootstrap"), []byte(debootstrap), 0o755))
	var runs errgroup.Group
	for range 3 {
		runs.Go(func() error {
			cmd := exec.Command("../hack/base")
			cmd.Env = append(os.Environ(), "BUILDKITD_ESGZ_CACHE="+cache)
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	require.NoError(t, runs.Wait())
	calls, err := os.ReadFile(filepath.Join(cache, "calls"))
	require.NoError(t, err)
	require.Equal(t, "called\n", string(calls))
	require.NoError(t, exec.Command("tar", "--extract", "--to-stdout", "--file", filepath.Join(cache, "base", "rootfs.tar"), "./etc/numbers").Run())
}

// What is mounted in a directory with a space in its name is unmounted too.
func TestScriptsUnmount(t *testing.T) {
	needs(t)
	dir := filepath.Join(t.TempDir(), "a b")
	require.NoError(t, os.Mkdir(dir, 0o755))
	// In a namespace of its own, so that a test that fails leaves no mount.
	cmd := exec.Command("unshare", "--mount", "bash", "-c", `. ../hack/lib.sh
scratch
mkdir "$work/mounted"
mount -t tmpfs none "$work/mounted"`)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "BUILDKITD_ESGZ_CACHE="+t.TempDir())
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}
