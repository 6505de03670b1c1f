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
	requireNothingLeft(t, d.dir)
	idle := "estargz-profile-idle=500ms"
	for _, c := range []struct {
		name, command, warning string
		attributes             []string
	}{
		{"fails", "cat first; exit 7", "exit code 7", nil},
		{"aborts", "cat first; sh -c 'kill -ABRT $$'; exit $?", "exit code 134", nil},
		{"takes too long", "cat first; " + forever, "", []string{"estargz-profile-period=500ms"}},
		{"is idle", "cat first; " + forever, "", []string{idle}},
		{"gets ready", "cat first; echo is ready now; " + forever, "", []string{"estargz-profile-ready=ready", "estargz-profile-idle=1h", "estargz-profile-period=1h"}},
		{"ignores TERM", "trap '' TERM; cat first; while true; do " + forever + "; done", "", []string{idle}},
		{"takes no notice of TERM", "trap 'echo no' TERM; cat first; while true; do " + forever + "; done", "", []string{idle}},
		{"leaves daemons behind", "cat first; (" + forever + " &) ; (setsid " + forever + " &)", "", nil},
		{"is a daemon with children", "cat first; (" + forever + " &) ; (setsid " + forever + " &); " + forever, "", []string{idle}},
		{"deletes", "cat first; rm -rf /data /crash /bin", "", nil},
		{"changes", "cat first; for f in first /crash; do mv $f $f.old; echo new >$f; chmod 0 $f; chown 1:1 $f; done", "", nil},
		{"changes user", "su user -c 'cat first; id -u'; setpriv --nnp cat first", "", nil},
		{"mounts", "cat first; unshare -m true; mount -t tmpfs none /data; true", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, image := d.profileOf(t, dir, []string{"sh", "-c", c.command}, c.attributes...)
			layers := prioritized(t, onlyImage(t, image))
			require.Equal(t, "data/first", layers[len(layers)-1])
			requireNothingLeft(t, d.dir)
			requireOnlyOrdered(t, plain, image)
			if c.warning == "" {
				require.Empty(t, p.warnings)
			} else {
				require.Contains(t, strings.Join(p.warnings, "\n"), c.warning)
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
			require.Equal(t, "nothing", layer)
		}
		requireOnlyOrdered(t, plain, image)
	})
}

// dataImage has files to read, a user, and a program that crashes.
func dataImage(t *testing.T) string {
	t.Helper()
	return writeFiles(t, map[string]string{
		"Dockerfile": `
FROM ` + busybox(t) + `
COPY --chmod=755 crash /crash
RUN mkdir -p /etc && echo user:x:1000:1000::/:/bin/sh >/etc/passwd
WORKDIR /data
COPY first unused /data/
`,
		"crash": program386(t, crashes),
		"first": "first\n", "unused": "unused\n",
	})
}

// profileOf builds with that command as the workload, which may not take long.
func (d *daemon) profileOf(t *testing.T, dir string, command []string, attributes ...string) (*progress, string) {
	t.Helper()
	var words []string
	for _, word := range command {
		words = append(words, "'"+strings.ReplaceAll(word, "'", `'\''`)+"'")
	}
	image := repository(t) + ":latest"
	start := time.Now()
	p := d.build(t, dir, "--output", profiled(image, append(attributes, `"estargz-profile-cmd=`+strings.Join(words, " ")+`"`)...))
	require.Less(t, time.Since(start), 10*time.Second)
	return p, image
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
		infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir + "/"))
		require.NoError(t, err)
		for _, info := range infos {
			points += info.Mountpoint + "\n"
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
	require.Less(t, time.Since(start), time.Minute)
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

	p, image := d.profileOf(t, dir, []string{"sh", "-c", "cat first; dd if=/dev/zero of=/full bs=1M; " + forever})
	require.Contains(t, strings.Join(p.warnings, "\n"), "the builder's disk")
	require.Greater(t, freeBytes(t, disk), free-8<<20)
	requireNothingLeft(t, d.dir, disk)
	requireOnlyOrdered(t, plain, image)
	layers := prioritized(t, onlyImage(t, image))
	require.Equal(t, "data/first", layers[len(layers)-1])
}

func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	return int64(st.Bfree) * st.Bsize
}
