package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A root goes from the stock daemon to ours and back, with its cache.
func TestStockRoot(t *testing.T) {
	needs(t)
	dir, image := helloImage(t), repository(t)
	d := startDaemon(t, stock)
	d.build(t, dir, "--output", "type=image,push=true,name="+image+":stock")
	as := func(binary string) {
		require.NoError(t, d.Stop())
		d.Binary = binary
		d.start(t)
	}
	as(ours)
	requireRunCached(t, d.build(t, dir, "--output", profiled(image+":ours")))
	requireEStargz(t, image+":ours")
	as(stock)
	requireRunCached(t, d.build(t, dir, "--output", "type=image,push=true,name="+image+":again"))
	require.Equal(t, onlyImage(t, image+":stock").Descriptor.Digest, onlyImage(t, image+":again").Descriptor.Digest)
	d.buildctl(t, "prune", "--all")
	as(ours)
	d.build(t, dir, "--output", profiled(image+":ours"))
}

// RUN steps have the socket for spans of their own daemon, which ends with that
// daemon alone, and comes back after a kill.
func TestTraceSocketOfEach(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{"Dockerfile": `
FROM ` + busybox(t) + `
ARG ROUND
RUN echo $ROUND: inode $(stat -c %i /dev/otel-grpc.sock).
`})
	d, other := startDaemon(t, ours), startDaemon(t, ours)
	requireSocket := func(d *daemon, round string) {
		t.Helper()
		p := d.build(t, dir, "--build-arg", "ROUND="+round, "--output", "type=cacheonly")
		var st unix.Stat_t
		require.NoError(t, unix.Stat(filepath.Join(d.Dir, "root", "otel-grpc.sock"), &st))
		require.Contains(t, p.logs.String(), fmt.Sprintf("%s: inode %d.", round, st.Ino))
	}
	requireSocket(other, "one")
	require.NoError(t, other.Stop())
	requireSocket(d, "two")
	d.Kill()
	d.start(t)
	requireSocket(d, "three")
}

// Layers of a base that are ordered already get the order of the new image only
// on demand.
func TestReorder(t *testing.T) {
	needs(t)
	d, image := startDaemon(t, ours), repository(t)
	base := writeFiles(t, map[string]string{"one": "1", "two": "2",
		"Dockerfile": "FROM " + busybox(t) + "\nCOPY one two /data/\nENTRYPOINT [\"cat\", \"/data/one\"]\n"})
	d.build(t, base, "--output", profiled(image+":base"))
	derived := writeFiles(t, map[string]string{"three": "3",
		"Dockerfile": "FROM " + image + ":base\nCOPY three /\nENTRYPOINT [\"cat\", \"/data/two\", \"/three\"]\n"})
	for reorder, want := range map[string][]string{"new": {"data/one", "three"}, "all": {"data/two", "three"}} {
		as := image + ":" + reorder
		d.build(t, derived, "--output", profiled(as, "estargz-reorder="+reorder))
		requireRead(t, as, want)
	}
}

// Prometheus sees what lazy layers do.
func TestLazyMetrics(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	port, err := freePort()
	require.NoError(t, err)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	d := startDaemon(t, ours, "--oci-worker-snapshotter=stargz", "--debugaddr="+address)
	d.build(t, upon(t, registry(t)+"/"+name, sumAll))
	res, err := http.Get("http://" + address + "/metrics")
	require.NoError(t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	found := regexp.MustCompile(`(?m)^buildkitd_esgz_lazy_read_wait_seconds_count(?:\{.*\})? (\d+)`).FindSubmatch(text)
	require.NotNil(t, found, "%s", text)
	waits, err := strconv.Atoi(string(found[1]))
	require.NoError(t, err)
	require.Positive(t, waits)
}

// The index of a layer has mount_timeout to arrive. After it the layer is pulled,
// and the progress says why.
func TestMountTimeout(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	want := sums(t, registry(t)+"/"+name)
	g := newGate(t)
	g.do(func(w http.ResponseWriter, r *http.Request) {
		// Only reads of the index come from the end of a blob.
		time.Sleep(2 * time.Second)
		g.forward.ServeHTTP(w, r)
	})
	p := startLazy(t, "mount_timeout = \"1s\"\n").build(t, upon(t, g.address+"/"+name, sumAll))
	require.Equal(t, want, sum(t, p))
	require.Contains(t, p.logs.String(), "mount_timeout")
}

// A step taken from a remote cache is mounted, and only what is read of it comes.
func TestLazyCache(t *testing.T) {
	needs(t)
	name := repositoryName(t)
	dir := writeFiles(t, map[string]string{"Dockerfile": "FROM " + busybox(t) + "\nRUN hardfiles random /large 16000000 1 && echo hello >/hello\nRUN cat /hello\n"})
	startDaemon(t, ours).build(t, dir, "--output", "type=cacheonly", "--cache-to", maxCache(registry(t)+"/"+name+":cache"))

	p := countingProxy(t)
	more := writeFiles(t, map[string]string{})
	file, err := os.ReadFile(filepath.Join(dir, "Dockerfile"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(more, "Dockerfile"), append(file, "RUN cat /hello /hello\n"...), 0o600))
	built := startLazy(t, onDemand).build(t, more, "--cache-from", "type=registry,ref="+p.address+"/"+name+":cache")
	require.Contains(t, built.logs.String(), "hello\nhello\n")
	require.Less(t, p.bytes.Load(), int64(8_000_000), "bytes read of a cache of 16 MB")
}

// Two daemons that share nothing but a cache in a registry: each takes from it what
// the other has built, and a step of the second one fetches what it reads.
func TestTwoDaemons(t *testing.T) {
	needs(t)
	p := countingProxy(t)
	image := p.address + "/" + repositoryName(t)
	one, two := startDaemon(t, ours), startLazy(t, onDemand)
	build := func(d *daemon, tag, last string) *progress {
		dir := writeFiles(t, map[string]string{"Dockerfile": "FROM " + busybox(t) +
			"\nRUN hardfiles random /large 16000000 1 && echo hello >/hello\nRUN " + last + "\n"})
		return d.build(t, dir, "--output", estargz(image+":"+tag),
			"--cache-from", "type=registry,ref="+image+":cache", "--cache-to", maxCache(image+":cache"))
	}
	isCached := func(p *progress, step string) bool {
		for _, v := range p.steps() {
			if strings.Contains(v.Name, step) {
				return v.Cached
			}
		}
		require.Fail(t, "no such step", p.text())
		return false
	}
	require.False(t, isCached(build(one, "first", "cat /hello"), "random"))
	fetched := p.bytes.Load()
	built := build(two, "second", "cat /hello /hello")
	require.True(t, isCached(built, "random"))
	require.Contains(t, built.logs.String(), "hello\nhello\n")
	require.Less(t, p.bytes.Load()-fetched, int64(8_000_000), "bytes fetched of a cached step of 16 MB")
	require.True(t, isCached(build(one, "third", "cat /hello /hello"), "cat"))
	requireEStargz(t, image+":second")
	require.Equal(t, layerDigests(t, image+":second"), layerDigests(t, image+":third"))
}

func layerDigests(t *testing.T, image string) (digests []string) {
	t.Helper()
	for _, layer := range onlyImage(t, image).Manifest.Layers {
		digests = append(digests, layer.Digest.String())
	}
	return digests
}

// Which network a workload has is asked for.
func TestProfileNetwork(t *testing.T) {
	needs(t)
	d := startDaemon(t, ours, "--allow-insecure-entitlement=network.host")
	dir := writeFiles(t, map[string]string{"alone": "1", "connected": "2", "run.sh": `
if [ "$(ls /sys/class/net)" = lo ]; then cat /alone; else cat /connected; fi
`, "Dockerfile": "FROM " + busybox(t) + "\nCOPY alone connected run.sh /\nENTRYPOINT [\"sh\", \"/run.sh\"]\n"})
	for network, want := range map[string]string{"none": "alone run.sh", "sandbox": "connected run.sh", "host": "connected run.sh"} {
		image := repository(t) + ":" + network
		d.build(t, dir, "--allow", "network.host", "--output", profiled(image, "estargz-profile-network="+network))
		requireRead(t, image, []string{want})
	}
}

// Where there is no FUSE, layers are pulled, and the progress says why.
func TestNoFUSE(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	want := sums(t, registry(t)+"/"+name)
	d := startDaemon(t, withoutFUSE(t), "--oci-worker-snapshotter=stargz")
	p := d.build(t, upon(t, registry(t)+"/"+name, sumAll))
	require.Equal(t, want, sum(t, p))
	require.Contains(t, p.logs.String(), "is not lazy")
	require.Contains(t, p.logs.String(), "fuse")
}

// Layers that were mounted cannot be mounted again without FUSE. The next build
// unpacks them, says why once, finds the steps upon them in its cache, and has the
// files of any other daemon. They stay unpacked where there is FUSE again.
func TestRestartWithoutFUSE(t *testing.T) {
	needs(t)
	name := repositoryName(t) + ":latest"
	image := repositoryName(t) + ":lower"
	startDaemon(t, ours).build(t, hardImage(t), "--output", estargz(registry(t)+"/"+image))
	startDaemon(t, ours).build(t, upon(t, registry(t)+"/"+image, "true"), "--output", estargz(registry(t)+"/"+name)) // a layer without files
	manifest := func(from string) string {
		return writeFiles(t, map[string]string{"Dockerfile": "FROM " + from + "/" + name + "\nRUN echo made >/made" +
			"\nRUN cat /made && hardfiles manifest /hard /bin # " + fmt.Sprint(rand.Uint32()) + "\n"})
	}
	const old = "time-before-1970" // 1970 for containerd's unpacking
	truth := startDaemon(t, ours).build(t, manifest(registry(t))).logs.String()
	requireHard(t, truth)
	const line = "cannot be mounted, it and others like it are unpacked: "
	requireUnpacked := func(d *daemon, p *progress, lines int) { // but for the layer without files
		t.Helper()
		requireSame(t, without(truth, old), without(without(p.logs.String(), line), old))
		require.Equal(t, lines, strings.Count(p.logs.String(), line), p.text())
		for _, v := range p.steps() {
			require.True(t, v.Cached || !strings.Contains(v.Name, "RUN echo"), p.text())
		}
		require.LessOrEqual(t, len(d.mounts(t)), 1)
		layers, err := os.ReadDir(filepath.Join(d.Dir, "root", "runc-stargz", "snapshots", "layers", "layers"))
		require.NoError(t, err)
		require.Len(t, layers, 1)
	}

	g := newGate(t) // which asks for a password
	d := startLazy(t, onDemand)
	d.build(t, writeFiles(t, map[string]string{"Dockerfile": "FROM " + g.address + "/" + name + "\nRUN echo made >/made\n"}))
	d.Kill()
	d.Binary = withoutFUSE(t)
	d.start(t)
	_, err := d.as(t, g.address, "builder", "wrong").tryBuild(t, manifest(g.address))
	require.Error(t, err)
	requireUnpacked(d, d.build(t, manifest(g.address)), 1)
	g.requireLazy(t, name)
	g.do(g.status(http.StatusForbidden)) // all is here
	requireUnpacked(d, d.build(t, manifest(g.address)), 0)
	for _, binary := range []string{d.Binary, ours} {
		d.Kill()
		d.Binary = binary
		d.start(t)
		requireUnpacked(d, d.build(t, manifest(g.address)), 0)
	}
	used := func() (bytes int64) {
		var s unix.Stat_t
		require.NoError(t, filepath.WalkDir(d.lazySnapshots(), func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				err = unix.Lstat(path, &s)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // the daemon removes what is not needed any more
			}
			require.NoError(t, err)
			if s.Nlink == 1 || s.Mode&unix.S_IFMT == unix.S_IFDIR {
				bytes += s.Blocks * 512
			}
			return nil
		}))
		return bytes
	}
	require.InEpsilon(t, used(), diskBytes(t, d.buildctl(t, "du")), 0.1, "each layer counts once")
	d.buildctl(t, "prune", "--all")
	requirePruned(t, d)
}

// A layer that is unpacked upon one layer, and was mounted upon another since, is
// unpacked there as well, with the credentials of the build that uses it.
func TestUnpackedUponTwo(t *testing.T) {
	needs(t)
	g := newGate(t)
	shared := make([]byte, 12_000_000)
	_, err := rand.NewChaCha8([32]byte{}).Read(shared)
	require.NoError(t, err)
	dir := writeFiles(t, map[string]string{"shared": string(shared),
		"Dockerfile": "FROM " + busybox(t) + "\nARG FIRST\nRUN echo $FIRST >/first\nCOPY --link shared /\n"})
	top := map[string]bool{}
	push := func(first string) (base string) {
		name := "/" + repositoryName(t) + ":" + first
		startDaemon(t, ours).build(t, dir, "--build-arg=FIRST="+first, "--output", estargz(registry(t)+name))
		layers := layerDigests(t, registry(t)+name)
		top[layers[len(layers)-1]] = true
		return g.address + name
	}
	one, two := push("one"), push("two")
	require.Len(t, top, 1, "the layer that both have")
	d := startLazy(t, onDemand)
	restart := func(binary string) {
		d.Kill()
		d.Binary = binary
		d.start(t)
	}
	d.build(t, upon(t, one, "true"))
	restart(withoutFUSE(t))
	d.build(t, upon(t, one, "cat /shared | wc -c"))
	restart(ours)
	d.build(t, upon(t, two, "true"))
	restart(withoutFUSE(t))
	_, err = d.as(t, g.address, "builder", "wrong").tryBuild(t, upon(t, two, "cat /shared | wc -c"))
	require.Error(t, err)
	require.Contains(t, d.build(t, upon(t, two, "cat /shared | wc -c")).logs.String(), fmt.Sprintln(len(shared)))
	require.Empty(t, d.mounts(t))
}

// While the layers below the result of a cached step are unpacked, garbage collection,
// du and other builds that use the result do not wait. A build that is cancelled ends it.
func TestUnpackingHoldsUpNobody(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	g := newGate(t)
	dockerfile := func(last string) string {
		return writeFiles(t, map[string]string{"Dockerfile": "FROM " + g.address + "/" + name + " AS cached\nRUN echo made >/made\nFROM scratch\n" + last})
	}
	const copying = "COPY --from=cached /made /small/3 /\n"
	d := startLazy(t, onDemand)
	d.build(t, dockerfile("COPY --from=cached /made /\n"))
	d.Kill()
	d.Binary = withoutFUSE(t)
	d.start(t)

	asked, answer := g.holdContents()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	first := d.command(ctx, "buildx", "build", dockerfile(copying))
	require.NoError(t, first.Start())
	awaitRequest(ctx, t, asked)
	soon, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	for _, args := range [][]string{{"buildctl", "du"}, {"buildctl", "prune", "--keep-duration=24h"}, {"buildx", "build", "--target=cached", dockerfile("")}} {
		out, err := d.command(soon, args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%v\n%s", args, out)
	}
	require.Len(t, d.parts(t), 1)

	require.NoError(t, first.Process.Signal(os.Interrupt))
	require.Error(t, first.Wait())
	require.Eventually(t, func() bool { return len(d.parts(t)) == 0 }, time.Minute, 10*time.Millisecond)
	close(answer)
	p := d.build(t, dockerfile(copying))
	require.Equal(t, 1, strings.Count(p.logs.String(), "cannot be mounted, it and others like it are unpacked: "), p.text())
	require.Empty(t, d.mounts(t))
	g.requireLazy(t, name)
}

// A layer that cannot be unpacked fails the build that merges upon it, not the daemon.
func TestUnpackingFailsBelowMerge(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	g := newGate(t)
	linking := func(content string) string {
		return writeFiles(t, map[string]string{"new": content, "Dockerfile": "FROM " + g.address + "/" + name + "\nCOPY --link new /\nRUN cat /new /small/3\n"})
	}
	d := startLazy(t, onDemand)
	d.build(t, linking("one\n"))
	d.Kill()
	d.Binary = withoutFUSE(t)
	d.start(t)
	g.do(func(w http.ResponseWriter, r *http.Request) {
		if isProbe(r) {
			g.forward.ServeHTTP(w, r)
			return
		}
		http.Error(w, "gone", http.StatusNotFound)
	})
	_, err := d.tryBuild(t, linking("two\n"))
	require.ErrorContains(t, err, "it is not unpacked")
	require.ErrorContains(t, err, g.address)
	g.do(nil)
	p := d.build(t, linking("three\n"))
	require.Contains(t, p.logs.String(), "three\n3\n")
	require.Contains(t, p.logs.String(), "cannot be mounted, it and others like it are unpacked: ")
	g.requireLazy(t, name)
}

// lazySnapshots is where the snapshots of the lazy snapshotter are.
func (d *daemon) lazySnapshots() string {
	return filepath.Join(d.Dir, "root", "runc-stargz", "snapshots", "snapshotter", "snapshots")
}

// parts are the directories in which layers are being unpacked.
func (d *daemon) parts(t *testing.T) []string {
	t.Helper()
	parts, err := filepath.Glob(filepath.Join(d.lazySnapshots(), "*", "unpacking-*"))
	require.NoError(t, err)
	return parts
}

// withoutFUSE is the daemon under test, with another device in the place of FUSE.
func withoutFUSE(t *testing.T) (binary string) {
	t.Helper()
	script := filepath.Join(tempDir(t), "daemon")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\nexec unshare --mount --propagation private sh -c 'mount --bind /dev/null /dev/fuse && exec \"$0\" \"$@\"' "+ours+" \"$@\"\n"), 0o700))
	return script
}
