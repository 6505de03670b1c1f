package integration

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

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
	atOnce(t, 3, cache, "../hack/base")
	calls, err := os.ReadFile(filepath.Join(cache, "calls"))
	require.NoError(t, err)
	require.Equal(t, "called\n", string(calls))
	require.NoError(t, exec.Command("tar", "--extract", "--to-stdout", "--file", filepath.Join(cache, "base", "rootfs.tar"), "./etc/numbers").Run())
}

// atOnce runs a script several times side by side, with one cache directory.
func atOnce(t *testing.T, times int, cache, script string) {
	t.Helper()
	var runs errgroup.Group
	for range times {
		runs.Go(func() error {
			cmd := exec.Command(script)
			cmd.Env = append(os.Environ(), "BUILDKITD_ESGZ_CACHE="+cache)
			out, err := cmd.CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	require.NoError(t, runs.Wait())
}

// installers are in the place of the programs that hack/tools runs.
var installers = map[string]string{
	"go": "", "dpkg": "",
	"debootstrap": `for root; do :; done; mkdir -p "$root/etc"`,
	// It fails beside another one.
	"apt-get": `mkdir "$BUILDKITD_ESGZ_CACHE/apt" || exit 100
sleep 0.2
case "$*" in *download*) touch a.deb ;; esac
rmdir "$BUILDKITD_ESGZ_CACHE/apt"`,
	"dpkg-deb": `mkdir -p "$3/usr/bin" "$3/bin" && touch "$3/usr/bin/docker-registry" "$3/bin/busybox"`,
}

// Tools are installed by one run at a time, whatever an interrupted one has left.
func TestScriptsInstallTools(t *testing.T) {
	needs(t)
	cache := programs(t, installers)
	for _, left := range []string{"docker.abcdef", "unpacked.abcdef"} {
		require.NoError(t, os.Mkdir(filepath.Join(cache, left), 0o700))
	}
	atOnce(t, 2, cache, "../hack/tools")
	require.Equal(t, "base bin docker tools.lock\n", script(t, cache, "", `cd "$BUILDKITD_ESGZ_CACHE" && echo *`))
	require.Equal(t, "bin usr\n", script(t, cache, "", `cd "$BUILDKITD_ESGZ_CACHE/docker" && echo *`))
}

// The emulators of the daemon's image are registered for all of the machine, and only
// if that is asked for.
func TestScriptsEntrypoint(t *testing.T) {
	cache := programs(t, map[string]string{
		"buildkitd": `echo "buildkitd $*"`, "buildkitd-binfmt": `echo "buildkitd-binfmt $*"`, "unshare": "exit 1",
	})
	for value, want := range map[string]string{
		"": "buildkitd --debug\n", "0": "buildkitd --debug\n", "1": "buildkitd-binfmt buildkitd --debug\n",
	} {
		require.Equal(t, want, script(t, cache, "BUILDKITD_BINFMT="+value, "../hack/daemon/buildkitd-entrypoint --debug 2>/dev/null"))
	}
}

// Each run of buildctl-daemonless.sh talks to its own daemon.
func TestScriptsDaemonless(t *testing.T) {
	cache := programs(t, map[string]string{
		"buildkitd": `echo "${2#--addr=}" >"$BUILDKITD_ESGZ_CACHE/daemon"; exec sleep 1000`,
		"buildctl":  `case "$2" in debug) cat "$BUILDKITD_ESGZ_CACHE/daemon" ;; build) echo "${1#--addr=}" ;; esac`,
	})
	tmp := t.TempDir()
	var addresses []string
	for range 2 {
		address := script(t, cache, "TMPDIR="+tmp, "ROOTLESSKIT=env BUILDKITD_FLAGS=--debug ../hack/daemon/buildctl-daemonless.sh build")
		daemon, err := os.ReadFile(filepath.Join(cache, "daemon"))
		require.NoError(t, err)
		require.Equal(t, string(daemon), address)
		addresses = append(addresses, address)
	}
	require.NotEqual(t, addresses[0], addresses[1])
	left, err := os.ReadDir(tmp)
	require.NoError(t, err)
	require.Empty(t, left)
}

// programs returns a cache with shell scripts by these names in the place of programs.
func programs(t *testing.T, scripts map[string]string) (cache string) {
	t.Helper()
	cache = t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(cache, "bin"), 0o755))
	for name, content := range scripts {
		require.NoError(t, os.WriteFile(filepath.Join(cache, "bin", name), []byte("#!/bin/sh\n"+content+"\n"), 0o755))
	}
	return cache
}

// script runs bash, which finds the programs of a cache first, and returns its output.
func script(t *testing.T, cache, env, content string) string {
	t.Helper()
	cmd := exec.Command("bash", "-c", content)
	cmd.Env = append(os.Environ(), "BUILDKITD_ESGZ_CACHE="+cache, "PATH="+filepath.Join(cache, "bin")+":"+os.Getenv("PATH"), env)
	var errors strings.Builder
	cmd.Stderr = &errors
	out, err := cmd.Output()
	require.NoError(t, err, "%s", &errors)
	return string(out)
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

// A script that waits for another run can be ended.
func TestScriptsEndWaiting(t *testing.T) {
	lock := filepath.Join(t.TempDir(), "lock")
	other, err := os.Create(lock)
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, unix.Flock(int(other.Fd()), unix.LOCK_EX))
	cmd := exec.Command("bash", "-c", `. ../hack/lib.sh
alone "$1" "is the test"`, "script", lock)
	said, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(said).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "Waiting for another run, which is the test")
	time.Sleep(100 * time.Millisecond) // until it does
	require.NoError(t, cmd.Process.Signal(unix.SIGTERM))
	slow := time.AfterFunc(20*time.Second, func() { unix.Flock(int(other.Fd()), unix.LOCK_UN) })
	require.Error(t, cmd.Wait())
	require.True(t, slow.Stop(), "it has waited for the lock")
	require.Equal(t, 143, cmd.ProcessState.ExitCode())
}

// A server that is killed, since it does not end, is named.
func TestScriptsNameKilled(t *testing.T) {
	cmd := exec.Command("bash", "-c", `. ../hack/lib.sh
exec {output}< <(trap '' TERM; exec tail -f /dev/null)
served+=($!)
until [[ $(tr '\0' ' ' <"/proc/$!/cmdline") = tail* ]]; do sleep 0.01; done
sleep() { :; }`)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "is killed: tail -f /dev/null")
}

// The demo's servers end with it, even if it is killed.
func TestScriptsKillDemo(t *testing.T) {
	needs(t)
	fakes := maps.Clone(installers)
	fakes["servers"] = `echo $$ >>"$BUILDKITD_ESGZ_CACHE/served"; echo address; exec sleep 1000`
	fakes["buildx"] = `touch "$BUILDKITD_ESGZ_CACHE/building"; sleep 2`
	cache := programs(t, fakes)
	cmd := exec.Command("../hack/demo")
	cmd.Env = append(os.Environ(), "BUILDKITD_ESGZ_CACHE="+cache, "TMPDIR="+t.TempDir())
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(cache, "building"))
		return err == nil
	}, time.Minute, 10*time.Millisecond)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	served, err := os.ReadFile(filepath.Join(cache, "served"))
	require.NoError(t, err)
	require.Len(t, strings.Fields(string(served)), 2)
	for _, field := range strings.Fields(string(served)) {
		pid, err := strconv.Atoi(field)
		require.NoError(t, err)
		t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
		assert.Eventually(t, func() bool { return unix.Kill(pid, 0) == unix.ESRCH }, 10*time.Second, 10*time.Millisecond)
	}
}
