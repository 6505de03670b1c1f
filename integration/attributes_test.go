package integration

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// What cannot work is refused before the build starts, by name, whoever asks.
func TestBadAttributes(t *testing.T) {
	needs(t)
	dir := helloImage(t)
	d := startDaemon(t, ours)
	ask := &refusals{d: d, dir: dir}
	for attributes, named := range map[string]string{
		"compression=estargz,estargz-chonk-size=1":                               "estargz-chonk-size",
		"compression=gzip,estargz-chonk-size=1":                                  "estargz-chonk-size",
		"compression=estargz,estargz-chunk-size=many":                            "estargz-chunk-size=many",
		"compression=estargz,estargz-chunk-size=0":                               "estargz-chunk-size=0",
		"compression=estargz,estargz-min-chunk-size=-1":                          "estargz-min-chunk-size=-1",
		"compression=estargz,oci-mediatypes=false":                               "oci-mediatypes",
		"compression=estargz,compression-level=99":                               "compression-level",
		"compression=estargz,rewrite-timestamp=perhaps":                          "rewrite-timestamp",
		"compression=estargz,estargz-reorder=some":                               "estargz-reorder=some",
		"compression=estargz,estargz-profile-timeout=1s":                         "estargz-profile-timeout=1s",
		"compression=gzip,estargz-profile=run":                                   "needs compression=estargz",
		"estargz-profile-idle=1s":                                                "needs compression=estargz",
		"compression=estargz,estargz-profile=":                                   "estargz-profile=",
		"compression=estargz,estargz-profile=run+test":                           "estargz-profile=run+test",
		"compression=estargz,estargz-profile=none+run":                           "estargz-profile=none+run",
		"compression=estargz,estargz-profile=stage,estargz-profile-stage=a b":    "estargz-profile-stage=a b",
		"compression=estargz,estargz-profile-stage=a":                            "needs stage",
		"compression=estargz,estargz-profile=none,estargz-profile-cmd=true":      "needs entrypoint",
		"compression=estargz,estargz-profile=run,estargz-profile-period=1s":      "needs entrypoint",
		"compression=estargz,estargz-profile=stage,estargz-profile-network=none": "needs entrypoint",
		"compression=estargz,estargz-profile-cmd=cat 'a":                         "estargz-profile-cmd=cat 'a",
		"compression=estargz,estargz-profile-cmd=":                               "estargz-profile-cmd=",
		"compression=estargz,estargz-profile-period=0":                           "estargz-profile-period=0",
		"compression=estargz,estargz-profile-period=-1s":                         "estargz-profile-period=-1s",
		"compression=estargz,estargz-profile-period=10":                          "estargz-profile-period=10",
		"compression=estargz,estargz-profile-period=25h":                         "estargz-profile-period=25h",
		"compression=estargz,estargz-profile-idle=0s":                            "estargz-profile-idle=0s",
		"compression=estargz,estargz-profile-ready=(":                            "estargz-profile-ready=(",
		"compression=estargz,estargz-profile-network=bridge":                     "estargz-profile-network=bridge",
		"compression=estargz,estargz-profile-network=host":                       "needs --allow network.host",
		"compression=gzip,estargz-convert=app":                                   "needs compression=estargz",
		"compression=estargz,estargz-convert=An App":                             "estargz-convert=An App",
		"compression=estargz,estargz-convert=app,estargz-profile=run":            "no RUN steps and no stages",
	} {
		out := `"` + strings.ReplaceAll("type=image,push=true,name="+repository(t)+","+attributes, ",", `","`) + `"`
		ask.buildx(named, "--output", out)
		ask.buildctl(named, "--output", out)
	}
	good := profiled(repository(t))
	ask.buildx("estargz-chunk-size=many", "--output", good, "--output", "type=oci,dest="+tempDir(t)+"/oci.tar,compression=estargz,estargz-chunk-size=many")
	ask.buildx("one image, not both", "--output", good+",estargz-convert=a", "--output", good+",estargz-convert=b")
	ask.buildx("type=local writes no layers", "--output", "type=local,estargz-profile=run,dest="+tempDir(t))
	ask.buildx("give it to -o", "--output", good, "--cache-to", maxCache(repository(t))+",estargz-profile=run")
	ask.buildctl("give it to -o", "--output", good, "--export-cache", maxCache(repository(t))+",estargz-reorder=all")
	ask.buildx("give it to -o", "--output", good, "--cache-to", maxCache(repository(t))+",estargz-convert=app")
	ask.buildx("no compression of its own", "--output", good, "--cache-to", "type=inline,estargz-profile=run")
	ask.buildx("network.host is not allowed", "--allow", "network.host", "--output", profiled(repository(t), "estargz-profile-network=host"))
	ask.all(t)
}

// refusals are builds that cannot work. Clients wait five seconds after such an
// error, so that they are asked for all at once.
type refusals struct {
	d    *daemon
	dir  string
	asks []func(t *testing.T) error
}

func (r *refusals) buildx(named string, args ...string) {
	r.add(named, "buildx", append([]string{"build", "--progress=rawjson", r.dir}, args...)...)
}

func (r *refusals) buildctl(named string, args ...string) {
	r.add(named, "buildctl", append([]string{"build", "--progress=rawjson", "--frontend", "dockerfile.v0",
		"--local", "context=" + r.dir, "--local", "dockerfile=" + r.dir}, args...)...)
}

func (r *refusals) add(named, client string, args ...string) {
	r.asks = append(r.asks, func(t *testing.T) error {
		cmd := r.d.command(t.Context(), client, args...)
		out, err := cmd.CombinedOutput()
		switch {
		case err == nil:
			return fmt.Errorf("%s was built", cmd)
		case !strings.Contains(string(out), named):
			return fmt.Errorf("%s: the error does not name %s:\n%s", cmd, named, out)
		case strings.Contains(string(out), `"vertexes"`):
			return fmt.Errorf("%s: steps ran before the error:\n%s", cmd, out)
		}
		return nil
	})
}

func (r *refusals) all(t *testing.T) {
	t.Helper()
	errs := make([]error, len(r.asks))
	var all sync.WaitGroup
	for i, ask := range r.asks {
		all.Go(func() { errs[i] = ask(t) })
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
}

// Which stages there are only the frontend knows. It is asked before anything is
// run.
func TestUnknownProfileStage(t *testing.T) {
	needs(t)
	d, dir := startDaemon(t, ours), helloImage(t)
	for attributes, named := range map[string]string{
		"estargz-profile=stage":                              "stage profile, name another one with estargz-profile-stage",
		"estargz-profile=run+stage,estargz-profile-stage=no": "stage no, name another one with estargz-profile-stage",
	} {
		p, err := d.tryBuild(t, dir, "--output", profiled(repository(t), attributes))
		require.ErrorContains(t, err, named)
		require.Empty(t, p.logs.String())
		for _, v := range p.steps() {
			require.NotContains(t, v.Name, "] RUN ", "steps ran before the error")
		}
	}
}

// Smaller chunks are more of them.
func TestChunkSize(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{"Dockerfile": `
FROM ` + busybox(t) + `
RUN hardfiles random /large 4000000 1
`})
	d := startDaemon(t, ours)
	for size, want := range map[string]int{"1MiB": 4, "500000": 8, "4MiB": 1} {
		image := repository(t) + ":" + size
		d.build(t, dir, "--output", estargz(image, "estargz-chunk-size="+size))
		layers := requireEStargz(t, image)
		require.Equal(t, want, layers[len(layers)-1].Chunks, "chunks of %s", size)
	}
	// The stock library's check refuses members that several files share.
	d.build(t, dir, "--output", estargz(repository(t)+":shared", "estargz-min-chunk-size=4096"))
}
