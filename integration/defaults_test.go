package integration

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// What the operator sets applies to builds that do not say otherwise, with the
// digests of builds that say so themselves.
func TestDefaults(t *testing.T) {
	needs(t)
	dir := dataImage(t)
	image := repository(t)
	config := writeFiles(t, map[string]string{"buildkitd.toml": `
[estargz]
profile = "none"
chunk-size = "1MiB"
compression-level = 1
`})
	d := startDaemon(t, ours)
	explicit := []string{"estargz-chunk-size=1MiB", "compression-level=1"}
	p := d.build(t, dir, "--output", profiled(image+":recorded", explicit...))
	require.Len(t, p.profileSteps(), 1)
	d.build(t, dir, "--output", estargz(image+":plain", explicit...))
	d.build(t, dir, "--output", estargz(image+":stock"))

	require.NoError(t, d.Stop())
	d.Flags = append(d.Flags, "--config", filepath.Join(config, "buildkitd.toml"))
	d.start(t)
	for _, c := range []struct {
		same    string
		records bool
		attrs   []string
	}{
		{":plain", false, nil},
		{":recorded", true, []string{"estargz-profile=entrypoint"}},
		{":stock", false, []string{"estargz-profile=none", "estargz-chunk-size=4MiB", "compression-level=6"}},
	} {
		p := d.build(t, dir, "--output", profiled(image+c.same+"-default", c.attrs...))
		require.Equal(t, c.records, len(p.profileSteps()) == 1, c.attrs)
		require.Equal(t, resolve(t, image+c.same).Digest, resolve(t, image+c.same+"-default").Digest, c.attrs)
	}
	require.NotEqual(t, resolve(t, image+":plain").Digest, resolve(t, image+":stock").Digest)
}
