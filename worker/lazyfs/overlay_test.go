package lazyfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"github.com/stretchr/testify/require"
)

// TestOverlay has a layer hide what is in the one below it, in root and in
// rootless form.
func TestOverlay(t *testing.T) {
	below := layerOf(
		dir("etc"), file("etc/passwd", "below"), file("etc/gone", "below"),
		dir("opt"), file("opt/old", "below"),
		file("replaced", "below"),
	)
	above := layerOf(
		dir("etc"), whiteout("etc/gone"), file("etc/hosts", "above"),
		opaqueDir("opt"), file("opt/new", "above"),
		dir("replaced"), file("replaced/by", "above"),
	)
	for name, user := range map[string]bool{"root": false, "rootless": true} {
		t.Run(name, func(t *testing.T) {
			options := ""
			if user {
				options = ",userxattr"
			}
			o := Options{UserXattr: user}
			dir := overlaid(t, options, mounted(t, above, o), mounted(t, below, o))
			require.Equal(t, []string{"hosts", "passwd"}, names(t, filepath.Join(dir, "etc")))
			require.Equal(t, []string{"new"}, names(t, filepath.Join(dir, "opt")))
			require.Equal(t, "above", read(t, dir, "replaced/by"))
			require.Equal(t, "below", read(t, dir, "etc/passwd"))

			require.NoError(t, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("changed"), 0o600))
			require.NoError(t, os.RemoveAll(filepath.Join(dir, "opt")))
			require.NoError(t, os.Rename(filepath.Join(dir, "etc/hosts"), filepath.Join(dir, "hosts")))
			forget(t)
			require.Equal(t, []string{"etc", "hosts", "replaced"}, names(t, dir))
			require.Equal(t, "changed", read(t, dir, "etc/passwd"))
		})
	}
}

const posixDir = "LAZYFS_POSIX_DIR"

// TestPosix runs go-fuse's tests on an overlay above a layer. What an overlay
// above a directory passes has to pass.
func TestPosix(t *testing.T) {
	bare := posixResults(t, overlaid(t, "", t.TempDir()))
	ours := posixResults(t, overlaid(t, "", mounted(t, layerOf(), Options{})))
	require.Greater(t, len(bare), len(posixtest.All)*3/4)
	for _, name := range bare {
		require.Contains(t, ours, name)
	}
}

// posixResults are the names of the tests that pass in a directory. Another
// process runs them, because a test that fails there shall not fail here.
func posixResults(t *testing.T, dir string) (passed []string) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestPosixHere$", "-test.v")
	cmd.Env = append(os.Environ(), posixDir+"="+dir)
	out, _ := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if _, name, ok := strings.Cut(line, "--- PASS: TestPosixHere/"); ok {
			passed = append(passed, strings.Fields(name)[0])
		}
	}
	require.NotEmpty(t, passed, "%s", out)
	slices.Sort(passed)
	return passed
}

func TestPosixHere(t *testing.T) {
	dir := os.Getenv(posixDir)
	if dir == "" {
		t.Skip("is run by TestPosix")
	}
	for name, test := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			below := filepath.Join(dir, name)
			require.NoError(t, os.Mkdir(below, 0o755))
			test(t, below)
		})
	}
}
