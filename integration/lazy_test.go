package integration

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
)

// startLazy starts a daemon with the lazy snapshotter. A read gives up after
// some seconds, so that a test can wait for it.
func startLazy(t *testing.T, config string) *daemon {
	t.Helper()
	file := filepath.Join(tempDir(t), "buildkitd.toml")
	require.NoError(t, os.WriteFile(file, []byte("[worker.oci.stargzSnapshotter]\n"+config), 0o600))
	return startDaemon(t, ours, "--config", file, "--oci-worker-snapshotter=stargz")
}

// onDemand fetches nothing that nobody reads.
const onDemand = "noprefetch = true\nno_background_fetch = true\n"

// pushLazy pushes a base with two large files and some small ones, and returns
// its name below a registry's address.
func pushLazy(t *testing.T) (name string) {
	t.Helper()
	name = repositoryName(t) + ":base"
	startDaemon(t, ours).build(t, writeFiles(t, map[string]string{"Dockerfile": "FROM " + busybox(t) +
		"\nRUN hardfiles random /one 12000000 1\nRUN hardfiles random /two 12000000 2\nRUN mkdir /small && for i in $(seq 300); do echo $i >/small/$i; done\n"}),
		"--output", estargz(registry(t)+"/"+name))
	return name
}

// upon is a build context whose RUN step reads what is upon a base.
func upon(t *testing.T, base, command string) string {
	return writeFiles(t, map[string]string{"Dockerfile": "FROM " + base + "\nRUN " + command + "\n"})
}

const sumAll = "cat /one /two /small/* | md5sum"

// sums are what sumAll prints of the base when it is pulled as usual.
func sums(t *testing.T, base string) string {
	t.Helper()
	p := startDaemon(t, ours).build(t, upon(t, base, sumAll))
	return sum(t, p)
}

var sumLine = regexp.MustCompile(`[0-9a-f]{32}  -`)

func sum(t *testing.T, p *progress) string {
	t.Helper()
	found := sumLine.FindString(p.logs.String())
	require.NotEmpty(t, found, p.text())
	return found
}

// Whoever builds upon a lazy base sees the same files as upon one that was
// unpacked.
func TestLazySameFiles(t *testing.T) {
	needs(t)
	name := repositoryName(t) + ":latest"
	startDaemon(t, ours).build(t, hardImage(t), "--output", estargz(registry(t)+"/"+name))
	dir := upon(t, registry(t)+"/"+name, "hardfiles manifest /hard /bin")
	truth := startDaemon(t, ours).build(t, dir).logs.String()
	requireHard(t, truth)
	// containerd's unpacking takes 1970 for all that is older.
	const old = "time-before-1970"
	g := newGate(t)
	dir = upon(t, g.address+"/"+name, "hardfiles manifest /hard /bin")
	requireSame(t, without(truth, old), without(startLazy(t, "").build(t, dir).logs.String(), old))
	g.requireLazy(t, name)
}

// Whoever wrote the layers, they are mounted, and the files are the same.
func TestLazyOfOthers(t *testing.T) {
	needs(t)
	name, dir := repositoryName(t), hardImage(t)
	base := registry(t) + "/" + name
	plain := startDaemon(t, stock)
	gzip := base + ":gzip"
	plain.build(t, dir, "--output", "type=image,push=true,oci-mediatypes=true,name="+gzip)
	for _, c := range []struct {
		name  string
		write func(image string)
	}{
		{"stock BuildKit", func(image string) {
			plain.build(t, dir, "--output", "type=image,push=true,oci-mediatypes=true,force-compression=true,compression=estargz,name="+image)
		}},
		{"ctr-remote", func(image string) {
			run(t, "optimize", "-address", startContainerd(t).Address, "-period", "1s", gzip, image)
		}},
		{"min-chunk-size", func(image string) {
			startDaemon(t, ours).build(t, dir, "--output", profiled(image, "estargz-min-chunk-size=65536"))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tag := ":" + path.Base(repositoryName(t))
			image := base + tag
			c.write(image)
			// The truth is what the same image shows when it is unpacked.
			command := upon(t, image, "hardfiles manifest /hard /bin")
			truth := startDaemon(t, ours).build(t, command).logs.String()
			requireHard(t, truth)
			g := newGate(t)
			command = upon(t, g.address+"/"+name+tag, "hardfiles manifest /hard /bin")
			lazy := startLazy(t, "").build(t, command).logs.String()
			require.NotContains(t, lazy, "is not lazy")
			g.requireLazy(t, name+tag)
			const old = "time-before-1970" // 1970 for containerd's unpacking
			requireSame(t, without(truth, old), without(lazy, old))
		})
	}
}

// What was fetched and what was built is there the second time, before and
// after a restart, and then without anybody to fetch it from.
func TestLazyRestart(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	want := sums(t, registry(t)+"/"+name)
	g := newGate(t)
	base := g.address + "/" + name
	// Whose policy does not stop fetching on a disk with little free space.
	d, dir := startLazy(t, "[worker.oci]\ngc = false\n"), upon(t, base, sumAll)
	require.Equal(t, want, sum(t, d.build(t, dir)))
	requireRunCached(t, d.build(t, dir))
	// A layer that is not all here is for builds that may read the rest.
	another := func() string { return upon(t, base, sumAll+" # "+fmt.Sprint(rand.Uint32())) }
	eventually(t, func() bool {
		g.do(g.status(http.StatusForbidden))
		_, err := d.tryBuild(t, another())
		g.do(nil)
		if err != nil {
			d.build(t, another())
		}
		return err == nil
	}, func() string { return "the layers do not fill up" })
	for _, end := range []func(){func() { require.NoError(t, d.Stop()) }, d.Kill} {
		end()
		d.start(t)
		g.do(g.status(http.StatusForbidden))
		requireRunCached(t, d.build(t, dir))
		require.Equal(t, want, sum(t, d.build(t, another())))
		g.do(nil)
	}
	g.requireLazy(t, name)
}

func requireRunCached(t *testing.T, p *progress) {
	t.Helper()
	for _, v := range p.steps() {
		require.True(t, v.Cached || !strings.Contains(v.Name, "RUN"), "%s\n%s", v.Name, p.text())
	}
}

// Whenever the daemon is killed, the next build succeeds and reads the right
// bytes, and nothing is left of the dead one.
func TestLazyKilled(t *testing.T) {
	needs(t)
	const rounds = 50
	name := pushLazy(t)
	want := sums(t, registry(t)+"/"+name)
	g := newGate(t)
	base := g.address + "/" + name
	d := startLazy(t, "")
	start := time.Now()
	require.Equal(t, want, sum(t, d.build(t, upon(t, base, sumAll+" # 0"))))
	usual := time.Since(start)
	interrupted := 0
	for round := range rounds {
		if round%5 == 4 {
			d.buildctl(t, "prune", "--all")
		}
		client := d.command(t.Context(), "buildx", "build", "--progress=quiet", upon(t, base, sumAll+fmt.Sprint(" # killed ", round)))
		require.NoError(t, client.Start())
		time.Sleep(time.Duration(rand.Int64N(int64(usual))))
		d.Kill()
		if client.Wait() != nil {
			interrupted++
		}
		d.start(t)
		require.Equal(t, want, sum(t, d.build(t, upon(t, base, sumAll+fmt.Sprint(" # after ", round)))))
		requireNoDeadMounts(t, d)
	}
	require.NotZero(t, interrupted, "every build had ended before the kill")
	g.requireLazy(t, name)
	d.buildctl(t, "prune", "--all")
	requirePruned(t, d)
}

func (d *daemon) mounts(t *testing.T) []*mountinfo.Info {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(d.Dir))
	require.NoError(t, err)
	return mounts
}

func requireNoDeadMounts(t *testing.T, d *daemon) {
	t.Helper()
	for _, m := range d.mounts(t) {
		_, err := os.ReadDir(m.Mountpoint)
		require.NoError(t, err)
	}
}

// requirePruned looks at the disk after everything was pruned.
func requirePruned(t *testing.T, d *daemon) {
	t.Helper()
	requirePrunedBelow(t, filepath.Join(d.Dir, "root"))
}

func requirePrunedBelow(t *testing.T, root string) {
	t.Helper()
	require.Empty(t, mountsBelow(t, []string{root}))
	for _, dir := range []string{"snapshotter/snapshots", "layers/layers", "layers/tmp"} {
		left, err := os.ReadDir(filepath.Join(root, "runc-stargz", "snapshots", dir))
		require.NoError(t, err)
		require.Empty(t, left, dir)
	}
}

// No fault that passes harms a build, and no wrong byte is ever read.
func TestLazyFaults(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	want := sums(t, registry(t)+"/"+name)
	g := newGate(t)
	for _, c := range []struct {
		name  string
		fault func(http.ResponseWriter, *http.Request)
	}{
		{"429", g.status(http.StatusTooManyRequests)},
		{"503", g.status(http.StatusServiceUnavailable)},
		{"reset", g.reset},
		{"stall", g.stall},
		{"corrupt", g.corrupt},
		{"wrong range", g.wrongRange},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := startLazy(t, "stall = \"1s\"\n")
			g.everyOther(c.fault)
			defer g.do(nil)
			require.Equal(t, want, sum(t, d.build(t, upon(t, g.address+"/"+name, sumAll))))
			g.requireLazy(t, name)
		})
	}
	t.Run("gone for a while", func(t *testing.T) {
		d := startLazy(t, onDemand)
		d.build(t, upon(t, g.address+"/"+name, "true"))
		g.do(g.reset)
		timer := time.AfterFunc(5*time.Second, func() { g.do(nil) })
		defer timer.Stop()
		require.Equal(t, want, sum(t, d.build(t, upon(t, g.address+"/"+name, sumAll))))
	})
	t.Run("gone for good", func(t *testing.T) {
		d := startLazy(t, onDemand+"deadline = \"3s\"\n")
		d.build(t, upon(t, g.address+"/"+name, "true"))
		g.do(g.status(http.StatusBadGateway))
		defer g.do(nil)
		begin := time.Now()
		_, err := d.tryBuild(t, upon(t, g.address+"/"+name, "cat /one | md5sum; cat /one >/dev/null"))
		require.Less(t, time.Since(begin), 30*time.Second)
		require.ErrorContains(t, err, "sha256:")
		require.ErrorContains(t, err, g.address)
		require.ErrorContains(t, err, "502")
	})
	t.Run("refused", func(t *testing.T) {
		d := startLazy(t, onDemand)
		d.build(t, upon(t, g.address+"/"+name, "true"))
		g.do(g.status(http.StatusForbidden))
		defer g.do(nil)
		_, err := d.tryBuild(t, upon(t, g.address+"/"+name, "cat /two >/dev/null"))
		require.ErrorContains(t, err, "403")
		// Who has shown that he may read is told what his process could not.
		g.do(func(w http.ResponseWriter, r *http.Request) {
			if isProbe(r) {
				g.forward.ServeHTTP(w, r)
				return
			}
			g.status(http.StatusForbidden)(w, r)
		})
		_, err = d.tryBuild(t, upon(t, g.address+"/"+name, "cat /two >/dev/null"))
		require.ErrorContains(t, err, "sha256:")
		require.ErrorContains(t, err, g.address+": 403")
		// The daemon's own reads tell as much.
		for _, last := range []string{"COPY --from=base /one /", "RUN --mount=from=base,source=/one,target=/read cat /read", "FROM base"} {
			dir := writeFiles(t, map[string]string{"Dockerfile": "FROM " + g.address + "/" + name + " AS base\nFROM " + busybox(t) + "\n" + last + "\n"})
			p, err := d.tryBuild(t, dir, "--output=type=tar,dest=/dev/null")
			require.Error(t, err)
			require.Contains(t, p.other.String(), "sha256:")
			require.Equal(t, 1, strings.Count(p.other.String(), g.address+": 403"), p.text())
		}
	})
}

// A step's error tells why the layers that it uses could not be read, and nothing
// of another build's.
func TestLazyErrorIsOwn(t *testing.T) {
	needs(t)
	refused, name := newGate(t), pushLazy(t)
	waits, other := newGate(t), repositoryName(t)+":other"
	d := startLazy(t, onDemand)
	d.build(t, writeFiles(t, map[string]string{"Dockerfile": "FROM " + busybox(t) + "\nRUN hardfiles random /other 12000000 3\n"}),
		"--output", estargz(registry(t)+"/"+other))
	d.build(t, upon(t, refused.address+"/"+name, "true"))
	d.build(t, upon(t, waits.address+"/"+other, "true"))
	reads, goOn := make(chan struct{}, 100), make(chan struct{})
	waits.do(func(w http.ResponseWriter, r *http.Request) {
		if !isProbe(r) {
			reads <- struct{}{}
			<-goOn
		}
		waits.forward.ServeHTTP(w, r)
	})
	refused.do(func(w http.ResponseWriter, r *http.Request) {
		if isProbe(r) {
			refused.forward.ServeHTTP(w, r)
			return
		}
		refused.status(http.StatusForbidden)(w, r)
	})
	built := make(chan error, 1)
	dir := upon(t, waits.address+"/"+other, "cat /other >/dev/null; false")
	go func() {
		_, err := d.tryBuild(t, dir)
		built <- err
	}()
	<-reads
	_, err := d.tryBuild(t, upon(t, refused.address+"/"+name, "cat /two >/dev/null"))
	require.ErrorContains(t, err, refused.address+": 403")
	require.NotContains(t, err.Error(), waits.address)
	close(goOn)
	err = <-built
	require.ErrorContains(t, err, "exit code: 1")
	require.NotContains(t, err.Error(), refused.address)
}

// Many builds at once upon one base finish, and fetch nothing twice.
func TestLazyManyBuilds(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	want := sums(t, registry(t)+"/"+name)
	g := newGate(t)
	d := startLazy(t, "")
	var wg sync.WaitGroup
	for i := range 64 {
		dir := upon(t, g.address+"/"+name, sumAll+fmt.Sprint(" # ", i))
		wg.Go(func() {
			built, err := d.tryBuild(t, dir)
			if err != nil {
				t.Error(err)
			} else if got := sumLine.FindString(built.logs.String()); got != want {
				t.Errorf("build %d read %q, want %q", i, got, want)
			}
		})
	}
	wg.Wait()
	require.Less(t, g.bytes(), int64(30_000_000), "bytes fetched of an image of about 26 MB")
	g.requireLazy(t, name)
}

// A layer that cannot be lazy is pulled, and the progress says so.
func TestNotLazy(t *testing.T) {
	needs(t)
	name, g := repositoryName(t)+":gzip", newGate(t)
	startDaemon(t, ours).build(t, helloImage(t), "--output", "type=image,push=true,name="+registry(t)+"/"+name)
	p := startLazy(t, "").build(t, upon(t, g.address+"/"+name, "cat /hello"))
	require.Contains(t, p.logs.String(), "is not lazy")
	require.Contains(t, p.logs.String(), "hello")
}

// What is lazy shows in the progress and in the disk usage as what is here.
func TestLazyIsSeen(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	d, g := startLazy(t, onDemand), newGate(t)
	base := g.address + "/" + name
	out, err := d.command(t.Context(), "buildx", "build", "--progress=plain", upon(t, base, "cat /one | wc -c")).CombinedOutput()
	require.NoError(t, err)
	require.Regexp(t, `(?m)^#\d+ lazy sha256:[0-9a-f]{64} [\d.]+MB / [\d.]+MB`, string(out))
	du := d.buildctl(t, "du", "--verbose")
	require.Less(t, diskBytes(t, du), 20e6, "one file of 12 MB was read\n%s", du)
	require.Greater(t, diskBytes(t, du), 12e6, du)
	d.build(t, upon(t, base, sumAll))
	du = d.buildctl(t, "du", "--verbose")
	require.Greater(t, diskBytes(t, du), 24e6, du)
	d.buildctl(t, "prune", "--all")
	requirePruned(t, d)
}

// diskBytes reads the total that buildctl du prints.
func diskBytes(t *testing.T, du string) float64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^Total:\s+([\d.]+)(k?[A-Z]*B)`).FindStringSubmatch(du)
	require.NotNil(t, m, du)
	var n float64
	_, err := fmt.Sscan(m[1], &n)
	require.NoError(t, err)
	unit := map[string]float64{"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[m[2]]
	require.NotZero(t, unit, m[2])
	return n * unit
}

// What is for the stock snapshotter alone does not keep the daemon from starting.
func TestLazyConfig(t *testing.T) {
	needs(t)
	d := startLazy(t, "http_cache_type = \"memory\"\n[worker.oci.stargzSnapshotter.blob]\nvalid_interval = 5\n")
	require.Contains(t, d.Tail(), "ignoring keys that mean nothing to this snapshotter: http_cache_type, blob")
}
