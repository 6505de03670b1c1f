package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Where the kernel does not record, or a container's seccomp profile does not let
// it, the build says why, once, and its layers are those of a build without a
// profile. Neither this daemon nor another takes that for a profile later, and
// the lazy layers are those of any daemon.
func TestProfileWithoutFanotify(t *testing.T) {
	needs(t)
	name := repositoryName(t) + ":base"
	startDaemon(t, ours).build(t, dataImage(t), "--output", estargz(registry(t)+"/"+name))
	for _, c := range []struct{ errno, call, reason string }{
		{"ENOSYS", "fanotify_init", "fanotify: function not implemented"},
		{"EPERM", "fanotify_init", "without CAP_SYS_ADMIN"},
		{"ENOSYS", "fanotify_mark", "fanotify: mark on the root filesystem: function not implemented"},
		{"EPERM", "fanotify_mark", "fanotify: mark on the root filesystem: operation not permitted"},
		{"EINVAL", "fanotify_mark", "fanotify: mark on the root filesystem: invalid argument"}, // Linux before 4.20
		{"ENOSYS", "openat2", "openat2, which takes Linux 5.6: function not implemented"},
	} {
		t.Run(c.call+" "+c.errno, func(t *testing.T) {
			g, image := newGate(t), repository(t)
			base := g.address + "/" + name
			dir := writeFiles(t, map[string]string{
				"Dockerfile": "FROM " + base + "\nCOPY new unread /new/\nCMD [\"cat\", \"/data/first\", \"/new/new\"]\n",
				"new":        "new\n", "unread": "unread\n",
			})
			less := lacking(t, c.errno, c.call)
			d := startDaemon(t, less, "--oci-worker-snapshotter=stargz")
			for _, tag := range []string{":first", ":second"} { // the second from the cache of the first
				p := d.build(t, dir, "--output", profiled(image+tag), "--cache-to", maxCache(image+":cache"))
				requireNotRecorded(t, p, image+tag, c.reason)
			}

			d.killInStep(t, base)
			d.Binary = ours
			d.start(t)
			for who, d := range map[string]*daemon{"killed": d, "another": startDaemon(t, ours)} {
				p := d.build(t, dir, "--output", profiled(image+":"+who), "--cache-from", "type=registry,ref="+image+":cache")
				require.Regexp(t, `recorded \d+ files`, p.logs.String(), who)
				require.Empty(t, p.warnings, who)
				layers := prioritized(t, onlyImage(t, image+":"+who))
				require.Equal(t, "new/new", layers[len(layers)-1], who)
			}

			d.killInStep(t, base)
			d.Binary = less
			d.start(t)
			p := d.build(t, dir, "--output", profiled(image+":cached"))
			require.Empty(t, p.warnings)
			require.Equal(t, resolve(t, image+":killed").Digest, resolve(t, image+":cached").Digest)
			p = d.build(t, upon(t, base, "cat /data/unused"))
			require.Contains(t, p.logs.String(), "unused\n")
			requireNotPulled(t, d, onlyImage(t, registry(t)+"/"+name).Manifest.Layers)
		})
	}
}

// A RUN step that cannot be recorded is an ordinary one: its output, what it leaves
// and its exit code are those of any. A line of its log says why, and so does the
// build, once for all steps.
func TestStepsWithoutFanotify(t *testing.T) {
	needs(t)
	dir := writeFiles(t, map[string]string{
		"Dockerfile": "FROM " + busybox(t) + `
COPY used unused /
RUN cat /used >/made; cat /made; echo complaint >&2
ARG CODE=0
RUN cat /made /made >/twice; exit $CODE
`,
		"used": "used\n", "unused": "unused\n",
	})
	repo := repository(t)
	// Builds of several daemons make the same files but for their times.
	build := func(d *daemon, tag, workload, code string) (*progress, error) {
		return d.tryBuild(t, dir, "--build-arg", "SOURCE_DATE_EPOCH=1750000000", "--build-arg", "CODE="+code,
			"--output", profiled(repo+":"+tag, "estargz-profile="+workload, reproducible))
	}
	_, err := build(startDaemon(t, ours), "ordinary", "none", "0")
	require.NoError(t, err)
	ordinary := onlyImage(t, repo+":ordinary").Descriptor.Digest
	for _, c := range []struct{ errno, call, reason string }{
		{"ENOSYS", "fanotify_init", "fanotify: function not implemented"},
		{"EPERM", "fanotify_init", "without CAP_SYS_ADMIN"},
		{"EINVAL", "fanotify_mark", "fanotify: mark on the root filesystem: invalid argument"},
		{"ENODEV", "fanotify_mark", "fanotify: mark on the root filesystem: no such device"},
	} {
		t.Run(c.call+" "+c.errno, func(t *testing.T) {
			d := startDaemon(t, lacking(t, c.errno, c.call))
			p, err := build(d, c.errno, "run", "0")
			require.NoError(t, err)
			requireNotRecorded(t, p, repo+":"+c.errno, c.reason)
			require.Equal(t, ordinary, onlyImage(t, repo+":"+c.errno).Descriptor.Digest)
			logs := p.logs.String()
			for _, line := range []string{"used\n", "complaint\n"} {
				require.Equal(t, 1, strings.Count(logs, line), "%q in %s", line, logs)
			}
			require.Equal(t, 2, strings.Count(logs, "not recorded: "), "a line for each step: %s", logs)
			require.Equal(t, 2, strings.Count(logs, c.reason), logs)

			_, err = build(d, "failed", "run", "7")
			require.ErrorContains(t, err, "did not complete successfully: exit code: 7")
		})
	}
}

// Where only parts of files cannot be told apart, files are recorded as whole ones.
func TestProfileWithoutRanges(t *testing.T) {
	needs(t)
	dir := dataImage(t)
	for _, c := range []struct{ errno, call string }{{"EPERM", "perf_event_open"}, {"ENOSYS", "fsopen"}} {
		t.Run(c.call, func(t *testing.T) {
			image := repository(t) + ":latest"
			p := startDaemon(t, lacking(t, c.errno, c.call)).build(t, dir, "--output", profiled(image))
			require.Empty(t, p.warnings)
			require.Contains(t, p.logs.String(), "large files count as read whole")
			requireRead(t, image, wantDataRead)
		})
	}
}

// killInStep kills the daemon while it runs a step upon a base.
func (d *daemon) killInStep(t *testing.T, base string) {
	t.Helper()
	client := d.command(t.Context(), "buildx", "build", "--progress=quiet", upon(t, base, "cat /data/first; "+forever))
	require.NoError(t, client.Start())
	eventually(t, func() bool {
		return slices.ContainsFunc(running(t, forever), func(line string) bool { return strings.HasPrefix(line, forever) })
	}, func() string { return "the step does not run" })
	d.Kill()
	require.Error(t, client.Wait())
}

// lacking is the daemon under test in a process for which a system call fails.
func lacking(t *testing.T, errno, call string) (binary string) {
	t.Helper()
	dir := tempDir(t)
	command, script := filepath.Join(dir, "lacking"), filepath.Join(dir, "daemon")
	build := exec.Command("go", "build", "-o", command, "./lacking")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	_, err := output(t, build)
	require.NoError(t, err)
	line := fmt.Sprintf("#!/bin/sh\nexec %s %s %s %s \"$@\"\n", command, errno, call, ours)
	require.NoError(t, os.WriteFile(script, []byte(line), 0o700))
	return script
}
