package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// forever is a command that nothing else on the machine runs.
var forever = fmt.Sprintf("sleep 98%d", os.Getpid())

// A workload may do what it likes: the image is exported, soon, and is what it
// would be without a profile but for the order. Nothing of the run is left.
func TestProfileOfBadWorkloads(t *testing.T) {
	needs(t)
	d := startDaemon(t, ours)
	dir, plain := dataImage(t), repository(t)+":none"
	d.build(t, dir, "--output", estargz(plain))
	requireNothingLeft(t, d.Dir)
	idle := "estargz-profile-idle=1s"
	for _, c := range []struct {
		name, command, end string
		attributes         []string
	}{
		{"fails", "cat first; exit 7", "(exit), exit code 7", nil},
		{"aborts", "cat first; sh -c 'kill -ABRT $$'; exit $?", "(exit), exit code 134", nil},
		{"takes too long", "cat first; " + forever, "(period)", []string{"estargz-profile-period=1s"}},
		{"is idle", "cat first; " + forever, "(idle)", []string{idle}},
		{"gets ready", "cat first; echo is ready now; " + forever, "(ready)", []string{"estargz-profile-ready=ready", "estargz-profile-idle=1h", "estargz-profile-period=1h"}},
		{"ignores TERM", "trap '' TERM; cat first; while true; do " + forever + "; done", "(idle)", []string{idle}},
		{"takes no notice of TERM", "trap 'echo no' TERM; cat first; while true; do " + forever + "; done", "(idle)", []string{idle}},
		{"leaves daemons behind", "cat first; (" + forever + " &) ; (setsid " + forever + " &)", "(exit)", nil},
		{"is a daemon with children", "cat first; (" + forever + " &) ; (setsid " + forever + " &); " + forever, "(idle)", []string{idle}},
		{"deletes", "cat first; rm -rf /data /crash /bin", "(exit)", nil},
		{"changes", "cat first; for f in first /crash; do mv $f $f.old; echo new >$f; chmod 0 $f; chown 1:1 $f; done", "(exit)", nil},
		{"changes user", "su user -c 'cat first; id -u'; setpriv --nnp cat first", "(exit)", nil},
		{"mounts", "cat first; unshare -m true; mount -t tmpfs none /data; true", "(exit)", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, image := d.profileOf(t, dir, []string{"sh", "-c", c.command}, c.attributes...)
			layers := prioritized(t, onlyImage(t, image))
			require.Equal(t, "data/first", layers[len(layers)-1])
			requireNothingLeft(t, d.Dir)
			requireOnlyOrdered(t, plain, image)
			require.Contains(t, p.logs.String(), c.end)
			if failed := strings.Contains(c.end, "code"); failed {
				require.Contains(t, strings.Join(p.warnings, "\n"), c.end)
				require.Contains(t, p.logs.String(), "its output:\nfirst\n")
			} else {
				require.Empty(t, p.warnings)
				require.NotContains(t, p.logs.String(), "output")
			}
		})
	}
	t.Run("crashes at once", func(t *testing.T) {
		p, image := d.profileOf(t, dir, []string{"/crash", "/data/first"})
		require.Contains(t, strings.Join(p.warnings, "\n"), "exit code 139")
		layers := prioritized(t, onlyImage(t, image))
		require.Equal(t, []string{"crash", "etc/passwd", "nothing", "data/first"}, layers[len(layers)-4:])
		requireOnlyOrdered(t, plain, image)
	})
	t.Run("is not there", func(t *testing.T) {
		p, image := d.profileOf(t, dir, []string{"/nowhere"})
		require.Contains(t, strings.Join(p.warnings, "\n"), "could not be started")
		for _, layer := range prioritized(t, onlyImage(t, image)) {
			require.Equal(t, "no landmark", layer)
		}
		requireOnlyOrdered(t, plain, image)
	})
}

// profileOf builds with that command as the workload.
func (d *daemon) profileOf(t *testing.T, dir string, command []string, attributes ...string) (*progress, string) {
	t.Helper()
	var words []string
	for _, word := range command {
		words = append(words, "'"+strings.ReplaceAll(word, "'", `'\''`)+"'")
	}
	image := repository(t) + ":latest"
	attributes = append(attributes, `"estargz-profile-cmd=`+strings.Join(words, " ")+`"`)
	return d.build(t, dir, "--output", profiled(image, attributes...)), image
}

// A workload that reads new files for ever is run twice by the first build, and
// found in the cache by the next, also that of another builder.
func TestProfileOfEndlessWorkload(t *testing.T) {
	needs(t)
	dir, image := dataImage(t), repository(t)+":latest"
	cache := "type=registry,ref=" + image + "-cache"
	endless := `"estargz-profile-cmd=sh -c 'cat first; while :; do i=$((i+1)); : >/new$i; sleep 0.1; done'"`
	output := func(tag string) string {
		return profiled(tag, "estargz-profile-period=3s", "estargz-profile-idle=2900ms", endless)
	}
	first := startDaemon(t, ours)
	p := first.build(t, dir, "--output", output(image), "--cache-to", maxCache(image+"-cache"))
	require.Contains(t, p.logs.String(), "run once more")
	require.Contains(t, strings.Join(p.warnings, "\n"), "still read new files when its period ended")
	requireNothingLeft(t, first.Dir)
	for tag, d := range map[string]*daemon{image + "-again": first, image + "-elsewhere": startDaemon(t, ours)} {
		p := d.build(t, dir, "--output", output(tag), "--cache-from", cache)
		_, cached := profileStep(t, p)
		require.True(t, cached, p.text())
		require.NotContains(t, p.logs.String(), "recorded")
		require.Equal(t, resolve(t, image).Digest, resolve(t, tag).Digest)
		layers := prioritized(t, onlyImage(t, tag))
		require.Equal(t, "data/first", layers[len(layers)-1])
	}
}

// requireNothingLeft: nothing is mounted below the directories, and no process
// of a workload runs.
func requireNothingLeft(t *testing.T, dirs ...string) {
	t.Helper()
	// BuildKit cleans up when the client has its answer.
	eventually(t, func() bool { return mountsBelow(t, dirs) == "" }, func() string { return mountsBelow(t, dirs) })
	require.Empty(t, running(t, forever))
}

func mountsBelow(t *testing.T, dirs []string) (points string) {
	t.Helper()
	for _, dir := range dirs {
		infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		require.NoError(t, err)
		for _, info := range infos {
			if info.Mountpoint != dir {
				points += info.Mountpoint + "\n"
			}
		}
	}
	return points
}

// running lists the processes with that command line.
func running(t *testing.T, command string) (found []string) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, file := range lines {
		args, err := os.ReadFile(file)
		if err != nil {
			continue // has ended
		}
		if line := string(bytes.ReplaceAll(args, []byte{0}, []byte{' '})); strings.Contains(line, command) {
			found = append(found, line)
		}
	}
	return found
}

// All of many files come first, however long it takes to read them.
func TestProfileOfManyFiles(t *testing.T) {
	needs(t)
	const many = 100_000
	dir := writeFiles(t, map[string]string{"Dockerfile": fmt.Sprintf(`
FROM %s
RUN hardfiles many /many %d
COPY unread /many/
CMD ["sh", "-c", "for dir in /many/*/; do cat $dir/*; done >/dev/null"]
`, busybox(t), many), "unread": "unread\n"})
	image := repository(t) + ":latest"
	d, _ := startDaemonInMemory(t, "4g") // a disk would take most of the time
	start := time.Now()
	p := d.build(t, dir, "--output", profiled(image, "estargz-profile-period=1m"))
	t.Logf("build of an image of %d files, all of them read: %v", many, time.Since(start))
	require.Empty(t, p.warnings)
	layers := prioritized(t, onlyImage(t, image))
	require.Len(t, strings.Fields(layers[len(layers)-2]), many)
}

// startDaemonInMemory gives the daemon a disk of that size for its root.
func startDaemonInMemory(t *testing.T, size string) (d *daemon, disk string) {
	t.Helper()
	disk = tempDir(t)
	require.NoError(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "size="+size))
	return startDaemon(t, ours, "--root", filepath.Join(disk, "root")), disk
}

// A workload may fill the disk that the daemon's root is on. What it wrote is
// gone before the image is exported.
func TestProfileOfFullDisk(t *testing.T) {
	needs(t)
	d, disk := startDaemonInMemory(t, "128m")
	dir, plain := dataImage(t), repository(t)+":none"
	d.build(t, dir, "--output", estargz(plain))
	free := freeBytes(t, disk)

	full := []string{"sh", "-c", "cat first; dd if=/dev/zero of=/full bs=1M; " + forever}
	p, image := d.profileOf(t, dir, full)
	require.Contains(t, strings.Join(p.warnings, "\n"), "the builder's disk")
	require.Greater(t, freeBytes(t, disk), free-8<<20)
	requireNothingLeft(t, d.Dir, disk)
	requireOnlyOrdered(t, plain, image)
	layers := prioritized(t, onlyImage(t, image))
	require.Equal(t, "data/first", layers[len(layers)-1])

	// It is not complete. The next build finds it in the cache, and runs again.
	p, _ = d.profileOf(t, dir, full)
	require.Contains(t, p.logs.String(), "(disk)")
}

func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	return int64(st.Bfree) * st.Bsize
}
