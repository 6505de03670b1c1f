package integration

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// An engine is a Docker engine with images, containers and a socket of its own.
// Its containers have the host's network or none.
type engine struct {
	dir  string
	path string // where its programs are
}

// runcLacking is a runc for machines where root lacks CAP_SYS_RESOURCE, as in many
// containers: an engine takes its own capabilities to be all that there are.
const runcLacking = `#!/bin/sh
for arg; do
	case $option in
	--bundle) file=$arg/config.json ;;
	--process) file=$arg ;;
	esac
	option=$arg
done
[ -z "$file" ] || sed -i 's/"CAP_SYS_RESOURCE",//g; s/,"CAP_SYS_RESOURCE"//g' "$file"
exec runc "$@"
`

func startEngine(t *testing.T) *engine {
	t.Helper()
	programs := filepath.Join(filepath.Dir(string(bin)), "docker", "usr")
	require.DirExists(t, programs, "run hack/tools")
	e := &engine{dir: tempDir(t), path: filepath.Join(programs, "bin") + ":" + filepath.Join(programs, "sbin") + ":" + os.Getenv("PATH")}
	in := func(name string) string { return filepath.Join(e.dir, name) }
	cmd := exec.Command(filepath.Join(programs, "sbin", "dockerd"), "--host", e.host(),
		"--data-root", in("data"), "--exec-root", in("exec"), "--pidfile", in("pid"),
		"--add-runtime", "lacking="+in("runc"), "--default-runtime", "lacking",
		"--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false")
	cmd.Env = append(os.Environ(), "PATH="+e.path)
	require.NoError(t, os.WriteFile(in("runc"), []byte(runcLacking), 0o700))
	for _, dir := range []string{"/etc/docker", "/run/docker"} { // which it makes without being asked
		if !fileExists(dir) {
			t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
		}
	}
	p, err := harness.Start(t.Context(), e.dir, "dockerd", cmd, func() bool { return e.command("version").Run() == nil })
	serve(t, p, err)
	return e
}

func (e *engine) host() string { return "unix://" + filepath.Join(e.dir, "docker.sock") }

func (e *engine) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(filepath.Dir(string(bin)), "docker", "usr", "bin", "docker"), args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.host())
	return cmd
}

func (e *engine) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := output(t, e.command(args...))
	require.NoError(t, err)
	return out
}

// testDockerContainer follows docs/drivers.md from a clone of the repository to an
// image that is built upon a lazy base, with the docker-container driver. The image
// of the daemon is built by d, as the engine's own builder would.
func testDockerContainer(t *testing.T, d *daemon, outside string) {
	name, built, g := pushLazy(t), repository(t)+":latest", newGate(t)
	dir := writeFiles(t, map[string]string{"hello": "hello\n", "other": "other\n", "Dockerfile": `
FROM ` + g.address + "/" + name + `
RUN cat /one | md5sum
COPY hello other /
ENTRYPOINT ["cat", "/hello"]
`})
	e := startEngine(t)
	t.Setenv("DOCKER_HOST", e.host())
	t.Setenv("PATH", e.path)
	plugins := filepath.Join(shared.logins(), "cli-plugins")
	require.NoError(t, os.MkdirAll(plugins, 0o700))
	require.NoError(t, os.Symlink(bin.Path("buildx"), filepath.Join(plugins, "docker-buildx")))

	commands := documented(t, "../docs/drivers.md", "--driver docker-container", strings.NewReplacer(
		"bake image", "bake --set image.contexts.build="+outside+" image",
		"localhost:5000", repository(t), "registry.example/app", built, " .\n", " "+dir+"\n"))
	require.LessOrEqual(t, len(commands), 4)
	d.bakeWith(t, repository(t), "sh", "-euxc", commands[0])
	for _, command := range commands[1:] {
		cmd := d.command(t.Context(), "sh", "-euxc", command)
		cmd.Env = append(cmd.Env, "BUILDX_BUILDER=")
		_, err := output(t, cmd)
		require.NoError(t, err)
	}
	requireEStargz(t, built)
	g.requireLazy(t, name)
	read := prioritized(t, onlyImage(t, built))
	require.Equal(t, "hello", read[len(read)-1], "the entrypoint was recorded in the container")

	inspected := d.buildx(t, "inspect", "esgz")
	require.Contains(t, inspected, "Status:                running")
	require.Regexp(t, `BuildKit version: +v\d+\.\d+\.\d+`, inspected)
	e.run(t, "restart", "buildx_buildkit_esgz0")
	g.do(g.status(http.StatusForbidden))
	requireRunCached(t, d.build(t, dir, "--builder", "esgz"))

	d.buildx(t, "rm", "esgz")
	require.Empty(t, e.run(t, "ps", "--all", "--quiet"))
	require.Empty(t, e.run(t, "volume", "ls", "--quiet"))
}

// documented returns the commands in the block of a page that contains a text.
func documented(t *testing.T, page, text string, names *strings.Replacer) (commands []string) {
	t.Helper()
	for _, b := range readBlocks(t, page) {
		if b.kind == "sh" && strings.Contains(b.text, text) {
			for line := range strings.Lines(names.Replace(strings.ReplaceAll(b.text, "\\\n", " "))) {
				commands = append(commands, line)
			}
		}
	}
	require.NotEmpty(t, commands, "%s: %s", page, text)
	return commands
}
