package integration

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// A daemon is a build daemon with a root and a socket of its own.
type daemon struct {
	*harness.Daemon
	logins string // where clients find passwords; empty for all that there are
}

// startDaemon starts the binary for as long as the test.
func startDaemon(t *testing.T, binary string, flags ...string) *daemon {
	t.Helper()
	return startDaemonEnv(t, binary, nil, flags...)
}

func startDaemonEnv(t *testing.T, binary string, env []string, flags ...string) *daemon {
	t.Helper()
	d := clientsOf(t)
	d.Binary, d.Env, d.Flags = binary, env, flags
	d.start(t)
	d.createBuilder(t)
	return d
}

// clientsOf is a daemon that runs elsewhere, or does not run yet.
func clientsOf(t *testing.T) *daemon {
	t.Helper()
	return &daemon{Daemon: &harness.Daemon{Tools: bin, Dir: tempDir(t)}}
}

func (d *daemon) start(t *testing.T) {
	t.Helper()
	err := d.Start(t.Context())
	serve(t, d.Process, err)
}

func (d *daemon) createBuilder(t *testing.T) {
	t.Helper()
	require.NoError(t, d.CreateBuilder(t.Context()))
}

func (d *daemon) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := d.Client(ctx, name, args...)
	if logins := cmp.Or(d.logins, shared.logins()); filepath.IsAbs(logins) {
		cmd.Env = append(cmd.Env, "DOCKER_CONFIG="+logins)
	}
	return cmd
}

// buildx runs buildx with this daemon as its builder.
func (d *daemon) buildx(t *testing.T, args ...string) string {
	t.Helper()
	out, err := output(t, d.command(t.Context(), "buildx", args...))
	require.NoError(t, err)
	return out
}

func (d *daemon) buildctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := output(t, d.command(t.Context(), "buildctl", args...))
	require.NoError(t, err)
	return out
}

// build builds the directory and fails the test when that fails.
func (d *daemon) build(t *testing.T, dir string, args ...string) *progress {
	t.Helper()
	p, err := d.tryBuild(t, dir, args...)
	require.NoError(t, err)
	return p
}

func (d *daemon) tryBuild(t *testing.T, dir string, args ...string) (*progress, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := d.command(ctx, "buildx", append(append([]string{"build", "--progress=rawjson"}, args...), dir)...)
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	p := readProgress(stderr)
	if err := cmd.Wait(); err != nil {
		return p, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, p.text())
	}
	return p, nil
}

// progress is what a build said while it ran.
type progress struct {
	vertexes map[string]*client.Vertex // the last state of each, by name
	logs     strings.Builder
	warnings []string
	other    strings.Builder // lines that are no progress, as errors are
}

// readProgress reads lines, of which some are no progress: buildx may complain of
// a connection that has ended, or of an error at last.
func readProgress(r io.Reader) *progress {
	p := &progress{vertexes: map[string]*client.Vertex{}}
	for in := bufio.NewReader(r); ; {
		line, err := in.ReadBytes('\n')
		var status client.SolveStatus
		if json.Unmarshal(line, &status) == nil {
			p.add(&status)
		} else {
			p.other.Write(line)
		}
		if err != nil {
			return p
		}
	}
}

func (p *progress) add(status *client.SolveStatus) {
	for _, v := range status.Vertexes {
		// A cached step is reported again, no longer as cached, when its result
		// is fetched.
		if earlier := p.vertexes[v.Name]; earlier != nil && earlier.Cached {
			v.Cached = true
		}
		p.vertexes[v.Name] = v
	}
	for _, l := range status.Logs {
		p.logs.Write(l.Data)
	}
	for _, w := range status.Warnings {
		p.warnings = append(p.warnings, string(w.Short))
	}
}

// text is for a person who looks at a failure.
func (p *progress) text() string {
	var b strings.Builder
	for name, v := range p.vertexes {
		fmt.Fprintf(&b, "%s cached=%v %s\n", name, v.Cached, v.Error)
	}
	return b.String() + p.logs.String() + p.other.String()
}

// steps are the vertexes of the Dockerfile, by the text of the instruction.
func (p *progress) steps() []*client.Vertex {
	var steps []*client.Vertex
	for name, v := range p.vertexes {
		if strings.HasPrefix(name, "[") && !strings.HasPrefix(name, "[internal]") {
			steps = append(steps, v)
		}
	}
	return steps
}

// writeFiles makes a build context of names and contents.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := tempDir(t)
	for name, content := range files {
		file := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(content), 0o644))
	}
	return dir
}

// profiled is the output that a user asks for, with more attributes.
func profiled(name string, more ...string) string {
	return strings.Join(append([]string{
		"type=image", "push=true", "name=" + name,
		"compression=estargz", "force-compression=true", "oci-mediatypes=true",
	}, more...), ",")
}

// estargz is the same without a profile: the layers' tars are those of any
// other export.
func estargz(name string, more ...string) string {
	return profiled(name, append([]string{"estargz-profile=none"}, more...)...)
}
