package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A step whose lazy layers are aborted fails, and its error says why. The next
// build mounts them again.
func TestFUSEAborted(t *testing.T) {
	needs(t)
	name, g := pushLazy(t), newGate(t)
	want := sums(t, registry(t)+"/"+name)
	connections := tempDir(t)
	require.NoError(t, syscall.Mount("fusectl", connections, "fusectl", 0, ""))
	d := startLazy(t, onDemand)
	base := g.address + "/" + name
	client := d.command(t.Context(), "buildx", "build", "--progress=plain", upon(t, base, "cat /small/1; "+forever+"; cat /one"))
	var said strings.Builder
	client.Stdout, client.Stderr = &said, &said
	require.NoError(t, client.Start())
	var step int
	eventually(t, func() bool { step = processOf(t, forever); return step != 0 }, func() string { return "the step does not run" })
	require.NotZero(t, d.devices(t))
	aborted := 0
	for _, m := range d.mounts(t) {
		if m.FSType == "fuse.lazyfs" {
			require.NoError(t, os.WriteFile(fmt.Sprintf("%s/%d/abort", connections, m.Minor), []byte("1"), 0))
			aborted++
		}
	}
	require.NotZero(t, aborted)
	eventually(t, func() bool { return d.devices(t) == 0 }, func() string { return "the daemon serves what was aborted" })
	require.NoError(t, syscall.Kill(step, syscall.SIGKILL))
	require.Error(t, client.Wait())
	require.Contains(t, said.String(), "was aborted", said.String())
	require.Contains(t, said.String(), base)

	require.Equal(t, want, sum(t, d.build(t, upon(t, base, sumAll))))
	g.requireLazy(t, name)
}

// processOf returns the process with a command line, 0 if there is none.
func processOf(t *testing.T, line string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, file := range files {
		raw, _ := os.ReadFile(file)
		if strings.TrimRight(strings.ReplaceAll(string(raw), "\x00", " "), " ") == line {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			require.NoError(t, err)
			return pid
		}
	}
	return 0
}

// devices counts the connections to FUSE that the daemon has.
func (d *daemon) devices(t *testing.T) int {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", d.Pid()))
	require.NoError(t, err)
	return len(slices.DeleteFunc(links, func(link string) bool {
		to, err := os.Readlink(link)
		return err != nil || to != "/dev/fuse"
	}))
}
