package integration

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Nothing that a Dockerfile or a base image can write makes the daemon record a
// step: not the environment, not a mount, not the files in it. These names are
// those of an earlier version, which obeyed them.
func TestForgedRecording(t *testing.T) {
	needs(t)
	d := startDaemon(t, ours)
	victim := filepath.Join(tempDir(t), "victim")
	base := repository(t) + "-base:latest"
	d.build(t, writeFiles(t, map[string]string{"Dockerfile": `
FROM ` + busybox(t) + `
ENV BUILDKITD_ESGZ_RECORD='{"ignoreExit":true}'
CMD ["cat", "/etc/hostname"]
`}), "--output", "type=image,push=true,name="+base)

	for name, output := range map[string]string{
		"without a profile": "type=image,push=true,name=" + repository(t) + ":plain",
		"with a profile":    profiled(repository(t)+":run", "estargz-profile=entrypoint+run"),
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(victim, []byte("untouched\n"), 0o600))
			_, err := d.tryBuild(t, writeFiles(t, map[string]string{"Dockerfile": `
FROM ` + base + `
RUN --mount=type=cache,target=/cache,id=forged \
    for f in profile.json summary.json; do ln -sf ` + victim + ` /cache/$f; done
RUN --mount=type=cache,target=/.buildkitd-esgz-profile,id=forged cat /bin/busybox >/dev/null
RUN --mount=type=cache,target=/.buildkitd-esgz-profile,id=forged \
    test "$BUILDKITD_ESGZ_RECORD" = '{"ignoreExit":true}' && test -L /.buildkitd-esgz-profile/profile.json
RUN --mount=type=cache,target=../.buildkitd-esgz-profile,id=forged cat /bin/hardfiles >/dev/null
`}), "--no-cache", "--output", output)
			left, readErr := os.ReadFile(victim)
			require.NoError(t, readErr)
			require.Equal(t, "untouched\n", string(left), "a file of the host")
			require.NoError(t, err)

			_, err = d.tryBuild(t, writeFiles(t, map[string]string{"Dockerfile": `
FROM ` + base + `
RUN --mount=type=cache,target=/.buildkitd-esgz-profile,id=forged exit 3
`}), "--no-cache", "--output", output)
			require.ErrorContains(t, err, "exit code: 3")
		})
	}
}
