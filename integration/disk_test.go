package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mountDisk mounts a filesystem of so many MiB for as long as the test.
func mountDisk(t *testing.T, kind string, size int) (dir string) {
	t.Helper()
	if kind == "tmpfs" {
		dir = tempDir(t)
		require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", size)))
		return dir
	}
	image := filepath.Join(tempDir(t), "image") // removed after the directory is unmounted
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, int64(size)<<20))
	run(t, "mkfs."+kind, "-q", "-m", "0", image) // with nothing set aside for root
	dir = tempDir(t)
	run(t, "mount", "-o", "loop", image, dir)
	return dir
}

// fillDisk leaves so many bytes of a filesystem, until undo is called.
func fillDisk(t *testing.T, dir string, bytes int64) (undo func()) {
	t.Helper()
	f, err := os.CreateTemp(dir, "filler")
	require.NoError(t, err)
	defer f.Close()
	// What a filesystem has is not all for contents.
	for size, part := int64(0), int64(1<<30); part > 0; part /= 2 {
		for freeBytes(t, dir)-part >= bytes && unix.Fallocate(int(f.Fd()), 0, size, part) == nil {
			size += part
		}
	}
	return func() { require.NoError(t, os.Remove(f.Name())) }
}

// A step that reads more of its lazy base than the disk holds fails, and says why.
// What is here is read, and builds that find their cache succeed, at the same time,
// afterwards, and after a restart. When the disk was pruned, there is room again.
func TestLazyFullDisk(t *testing.T) {
	needs(t)
	const files, size = 10, 24_000_000
	name := repositoryName(t) + ":base"
	startDaemon(t, ours).build(t, writeFiles(t, map[string]string{"Dockerfile": "FROM " + busybox(t) +
		fmt.Sprintf("\nRUN for i in $(seq %d); do hardfiles random /$i %d $i; done\n", files, size)}),
		"--output", estargz(registry(t)+"/"+name, "compression-level=1", "estargz-chunk-size=65536"))
	config := filepath.Join(tempDir(t), "buildkitd.toml")
	require.NoError(t, os.WriteFile(config, []byte("[worker.oci]\ngc = false\n[worker.oci.stargzSnapshotter]\n"+onDemand), 0o600))
	for _, filesystem := range []string{"tmpfs", "ext4"} {
		t.Run(filesystem, func(t *testing.T) {
			disk := mountDisk(t, filesystem, 200)
			g := newGate(t)
			base := g.address + "/" + name
			d := startDaemon(t, ours, "--config", config, "--oci-worker-snapshotter=stargz", "--root", filepath.Join(disk, "root"))
			cached := upon(t, base, "wc -c /1")
			d.build(t, cached)
			requireCached := func() {
				requireRunCached(t, d.build(t, cached))
				d.build(t, upon(t, base, fmt.Sprint("cat /1 >/dev/null # ", rand.Uint32())))
			}

			// Steps that want to read it all, and others that have read.
			var readers sync.WaitGroup
			for range 2 {
				dir := upon(t, base, fmt.Sprint("cat /* >/dev/null # ", rand.Uint32()))
				readers.Go(func() {
					p, err := d.tryBuild(t, dir)
					if err == nil {
						t.Error("the disk holds it all")
						return
					}
					for _, part := range []string{
						"lazy layer sha256:", base, "no room for ",
						"the filesystem of " + filepath.Join(disk, "root", "runc-stargz", "snapshots"), " available", "prune the build cache",
					} {
						if !strings.Contains(err.Error(), part) {
							t.Errorf("the error does not say %q: %v", part, err)
						}
					}
					if strings.Contains(p.text(), "No space left on device") {
						t.Error(p.text())
					}
				})
			}
			done := make(chan struct{})
			go func() { readers.Wait(); close(done) }()
			for ended := false; !ended; {
				select {
				case <-done:
					ended = true
				default:
				}
				requireCached()
			}
			requireCached()
			for _, end := range []func(){func() { require.NoError(t, d.Stop()) }, d.Kill} {
				end()
				undo := fillDisk(t, disk, 0) // as something else may
				d.start(t)
				undo()
				requireCached()
			}
			g.requireLazy(t, name)
			_, err := d.tryBuild(t, upon(t, base, "cat /10 /9 /8 /7 >/dev/null"))
			require.ErrorContains(t, err, "no room for ")

			d.buildctl(t, "prune", "--all")
			d.build(t, upon(t, base, "cat /10 /9 /8 /7 >/dev/null"))
			d.buildctl(t, "prune", "--all")
			requirePrunedBelow(t, filepath.Join(disk, "root"))
		})
	}
}

// An export that finds no room says so and leaves nothing behind. The next one that
// does succeeds.
func TestExportOnFullDisk(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{"Dockerfile": "FROM " + busybox(t) + `
RUN hardfiles random /one 30000000 1
RUN hardfiles random /two 30000000 2
CMD ["cat", "/two"]
`})
	for _, c := range []struct {
		name   string
		output func(name string, more ...string) string
		left   int64 // bytes of the disk
	}{
		{"while compressing", estargz, 20_000_000},
		{"at the end", estargz, 45_000_000},
		{"while ordering", profiled, 90_000_000},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := mountDisk(t, "tmpfs", 400)
			d := startDaemon(t, ours, "--root", filepath.Join(disk, "root"))
			d.build(t, dir)
			undo := fillDisk(t, disk, c.left)
			image := repository(t) + ":latest"
			output := c.output(image, "compression-level=1")
			_, err := d.tryBuild(t, dir, "--output", output)
			require.ErrorContains(t, err, "no space left on device")
			require.ErrorContains(t, err, filepath.Join(disk, "root"))
			// What a full disk keeps the content store from beginning to write stays a
			// directory without data until the next start.
			ingests := func() string {
				found, err := filepath.Glob(filepath.Join(disk, "root", "*", "content", "ingest", "*", "data"))
				require.NoError(t, err)
				return strings.Join(found, "\n")
			}
			// BuildKit may still be cleaning up when the client has its answer.
			eventually(t, func() bool { return ingests() == "" }, ingests)
			undo()
			d.build(t, dir, "--output", output)
			plain := repository(t) + ":none"
			d.build(t, dir, "--output", estargz(plain))
			requireOnlyOrdered(t, plain, image)
		})
	}
}
