package integration

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A daemon that is asked to end completes the builds that run, which may still
// read lazy layers and push.
func TestTerminationDrains(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	want := sums(t, registry(t)+"/"+name)
	asked, release := make(chan struct{}), make(chan struct{})
	// BuildKit asks for a URL twice: for its digest, and for its content.
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- struct{}{}:
		case <-release:
		}
		<-release
		fmt.Fprintln(w, "late")
	}))
	t.Cleanup(server.Close)
	g := newGate(t)
	d, image := startLazy(t, onDemand), repository(t)
	dir := writeFiles(t, map[string]string{"Dockerfile": "FROM " + g.address + "/" + name +
		"\nADD " + server.URL + "/late /late\nRUN " + sumAll + "\n"})

	metadata := filepath.Join(tempDir(t), "metadata.json")
	type result struct {
		p   *progress
		err error
	}
	ended := make(chan result, 1)
	go func() {
		p, err := d.tryBuild(t, dir, "--output", profiled(image), "--metadata-file", metadata)
		ended <- result{p, err}
	}()
	select {
	case <-asked:
	case r := <-ended:
		require.Fail(t, "the build ended early", "%v\n%s", r.err, r.p.text())
	}
	d.Signal(syscall.SIGTERM)
	eventually(t, func() bool { return strings.Contains(d.Tail(), "stopping server") }, d.Tail)
	_, err := d.tryBuild(t, upon(t, busybox(t), "true"))
	require.ErrorContains(t, err, "takes no more builds")
	close(release)
	r := <-ended
	require.NoError(t, r.err)
	require.Equal(t, want, sum(t, r.p))
	<-d.Done()
	require.NoError(t, d.Err())
	requireEStargz(t, image)
	// Its client asks for the record after the build.
	written, err := os.ReadFile(metadata)
	require.NoError(t, err)
	require.Contains(t, string(written), "buildx.build.provenance")
	g.requireLazy(t, name)
	require.Empty(t, d.mounts(t))
}

// health is what an orchestrator asks, who gives up after a while.
func (d *daemon) health(t *testing.T) error {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := output(t, d.command(ctx, "buildctl", "debug", "workers"))
	return err
}

// A registry that answers no more holds up the builds that want its layers, and
// neither health checks nor other builds nor the end of the daemon.
func TestHangingRegistry(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	g := newGate(t)
	d := startLazy(t, onDemand)
	base := g.address + "/" + name
	// The layers are mounted and in use when the registry stops to answer.
	d.build(t, upon(t, base, "true"))
	hanging := make(chan struct{})
	stalled := make(chan struct{}, 100)
	g.do(func(w http.ResponseWriter, r *http.Request) {
		select {
		case stalled <- struct{}{}:
		default:
		}
		g.stall(w, r)
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	client := d.command(ctx, "buildx", "build", "--progress=quiet", upon(t, base, sumAll))
	require.NoError(t, client.Start())
	go func() {
		defer close(hanging)
		_ = client.Wait()
	}()
	<-stalled

	require.NoError(t, d.health(t))
	d.buildctl(t, "du")
	d.buildctl(t, "prune", "--keep-storage", "1000000")
	d.build(t, upon(t, busybox(t), "true"))
	select {
	case <-hanging:
		require.Fail(t, "the build that was to hang has ended", d.Tail())
	default:
	}
	// The first signal waits for builds, the second ends them.
	d.Signal(syscall.SIGTERM)
	eventually(t, func() bool { return strings.Contains(d.Tail(), "stopping server") }, d.Tail)
	d.Signal(syscall.SIGTERM)
	<-hanging
	<-d.Done()
	g.do(nil)
	d.start(t)
	require.Equal(t, sums(t, registry(t)+"/"+name), sum(t, d.build(t, upon(t, base, sumAll))))
	g.requireLazy(t, name)
}
