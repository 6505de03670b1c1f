package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/seed"
)

// slowImage has layers that take a while to compress, other ones for each
// round.
func slowImage(t *testing.T) string {
	return writeFiles(t, map[string]string{"Dockerfile": `
FROM ` + busybox(t) + `
ARG ROUND
RUN hardfiles random /a 24000000 "${ROUND}1"
RUN hardfiles random /b 24000000 "${ROUND}2"
`})
}

// Whatever dies in the middle of an export, the next build succeeds, and what it
// exports is whole.
func TestKilledWhileExporting(t *testing.T) {
	needs(t)
	const rounds = 5
	random := seed.New(t)
	dir := slowImage(t)
	d := startDaemon(t, ours)
	usual := usualExport(t, d, dir)

	victims := map[string]func(*exec.Cmd){
		"client": func(client *exec.Cmd) { client.Process.Kill() },
		"daemon": func(*exec.Cmd) {
			d.Kill()
			d.start(t)
		},
	}
	for name, kill := range victims {
		t.Run(name, func(t *testing.T) {
			interrupted := 0
			for range rounds {
				round := fmt.Sprint("ROUND=", random.Uint32())
				// Build first, so that all that remains is the export.
				d.build(t, dir, "--build-arg", round, "--output", "type=cacheonly")

				image := repository(t) + ":latest"
				client := d.command(t.Context(), "buildx", "build", "--progress=quiet", "--build-arg", round, "--output", estargz(image), dir)
				require.NoError(t, client.Start())
				after := time.Duration(random.Int64N(int64(usual)))
				time.Sleep(after)
				kill(client)
				if err := client.Wait(); err != nil {
					interrupted++
					t.Logf("killed after %v of %v", after, usual)
				}

				layout := filepath.Join(tempDir(t), "oci")
				d.build(t, dir, "--build-arg", round, "--output", estargz(image),
					"--output", "type=oci,tar=false,estargz-profile=none,compression=estargz,force-compression=true,dest="+layout)
				requireEStargz(t, image)
				requireWholeBlobs(t, layout)
			}
			require.NotZero(t, interrupted, "every export had ended before the kill")
		})
	}
}

// usualExport says how long an export takes when nothing happens to it.
func usualExport(t *testing.T, d *daemon, dir string) time.Duration {
	t.Helper()
	d.build(t, dir, "--build-arg", "ROUND=0", "--output", "type=cacheonly")
	start := time.Now()
	d.build(t, dir, "--build-arg", "ROUND=0", "--output", estargz(repository(t)))
	return time.Since(start)
}

// requireWholeBlobs reads what the daemon's own store has: a push may have
// skipped it, since the registry has it already.
func requireWholeBlobs(t *testing.T, layout string) {
	t.Helper()
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs", "sha256", "*"))
	require.NoError(t, err)
	require.NotEmpty(t, blobs)
	for _, blob := range blobs {
		content, err := os.ReadFile(blob)
		require.NoError(t, err)
		require.Equal(t, filepath.Base(blob), digest.FromBytes(content).Encoded())
	}
}
