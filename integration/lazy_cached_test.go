package integration

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// A cache mount upon a lazy base is the same one in the next build, and after a restart.
func TestLazyCacheMount(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	want := sums(t, registry(t)+"/"+name)
	g := newGate(t)
	d := startLazy(t, onDemand)
	count := func(build int, then string) *progress {
		return d.build(t, writeFiles(t, map[string]string{"Dockerfile": "FROM " + g.address + "/" + name + " AS base\nFROM " + busybox(t) +
			"\nRUN --mount=type=cache,target=/cache,from=base cd /cache && echo >>builds && echo builds: $(wc -l <builds)" + then + " # " + fmt.Sprint(build) + "\n"}))
	}
	require.Contains(t, count(1, "").logs.String(), "builds: 1\n")
	require.Contains(t, count(2, "").logs.String(), "builds: 2\n")
	d.Kill()
	d.start(t)
	p := count(3, " && cat one two small/* | md5sum")
	require.Contains(t, p.logs.String(), "builds: 3\n")
	require.Equal(t, want, sum(t, p))
	g.requireLazy(t, name)
}

// The base image is here as one blob, and comes from a cache as another one of the same
// files, which BuildKit never pulls.
func TestCacheOfOtherBlobs(t *testing.T) {
	needs(t)
	dockerfile := "FROM " + busybox(t) + "\nRUN echo top >/top\n"
	cache := "type=registry,ref=" + repository(t) + ":cache"
	startDaemon(t, ours).build(t, writeFiles(t, map[string]string{"Dockerfile": dockerfile}),
		"--cache-to", cache+",mode=max,compression=zstd,force-compression=true,oci-mediatypes=true")
	d := startLazy(t, onDemand)
	d.build(t, writeFiles(t, map[string]string{"Dockerfile": "FROM " + busybox(t) + "\nRUN true\n"}))
	p := d.build(t, writeFiles(t, map[string]string{"Dockerfile": dockerfile + "RUN cat /top; ls /bin/sh\n"}), "--cache-from", cache)
	require.Regexp(t, `RUN echo top >/top cached=true`, p.text())
	require.Contains(t, p.logs.String(), "/bin/sh")
}
