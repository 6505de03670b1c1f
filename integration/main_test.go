package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

var (
	// bin has what hack/tools built.
	bin = harness.Tools(filepath.Join(environ("BUILDKITD_ESGZ_CACHE", "/var/cache/buildkitd-esgz"), "bin"))
	// ours is the daemon under test.
	ours = environ("BUILDKITD_ESGZ_DAEMON", filepath.Join(string(bin), "buildkitd-esgz"))
	// stock is upstream's daemon of the same version.
	stock = filepath.Join(string(bin), "buildkitd")
	// required turns a skip into a failure: hack/test sets it, so that no test
	// is left out unseen where all of them must run.
	required = os.Getenv("BUILDKITD_ESGZ_REQUIRED") != ""
)

func environ(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func TestMain(m *testing.M) {
	code := m.Run()
	if err := shared.end(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// needs skips the test on a machine that cannot run it.
func needs(t *testing.T) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "root"
	}
	for _, file := range []string{ours, stock, filepath.Join(string(bin), "buildx"), filepath.Join(string(bin), "containerd")} {
		if _, err := os.Stat(file); err != nil {
			missing = file
		}
	}
	if missing == "" {
		return
	}
	require.False(t, required, "needs %s", missing)
	t.Skipf("needs %s: run hack/test", missing)
}
