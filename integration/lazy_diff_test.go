package integration

import (
	"bufio"
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/stretchr/testify/require"
)

// The files of a diff are read before a step begins, and by nobody's process. They are
// read with the credentials of the build that wants them, while others are running too.
func TestLazyDiff(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	want := sums(t, registry(t)+"/"+name)
	// Computed, as the one has nothing to do with the other.
	diff := func(address string) llb.State {
		return llb.Diff(llb.Scratch().File(llb.Mkfile("/only-here", 0o644, nil)), llb.Image(address+"/"+name))
	}
	sh := func(s llb.State, command string, opts ...llb.RunOption) llb.State {
		return s.Run(append(opts, llb.Shlex("sh -c '"+command+"'"))...).Root()
	}
	reads := map[string]func(address string) llb.State{
		"run": func(address string) llb.State { return sh(diff(address), sumAll) },
		"merged": func(address string) llb.State {
			return sh(llb.Merge([]llb.State{llb.Scratch().File(llb.Mkfile("/first", 0o644, nil)), diff(address)}), sumAll)
		},
		"mounted": func(address string) llb.State {
			return sh(llb.Image(busybox(t)), "cd /diff; cat one two small/* | md5sum", llb.AddMount("/diff", diff(address), llb.Readonly))
		},
		"copied": func(address string) llb.State {
			return sh(llb.Image(busybox(t)).File(llb.Copy(diff(address), "/", "/copy")), "cd /copy; cat one two small/* | md5sum")
		},
	}
	for how, read := range reads {
		t.Run(how, func(t *testing.T) {
			g, g2 := newGate(t), newGate(t)
			g2.do(g2.status(http.StatusForbidden)) // it has the manifest, and none of the layers
			d := startLazy(t, onDemand)
			hold(t, d, upon(t, g.address+"/"+name, "head -c 100 /one >/dev/null; echo begun; sleep 600"))
			before := g.bytes()
			out, err := d.as(t, g2.address, "builder", "secret").solve(t, read(g2.address))
			require.Error(t, err, out)
			require.Regexp(t, "is lazy, and not all here: .* (401 Unauthorized|403 Forbidden)", out)
			require.Equal(t, before, g.bytes())

			d.Kill()
			d.start(t)
			out, err = d.solve(t, read(g.address))
			require.NoError(t, err, out)
			require.Contains(t, out, want)

			// As with the result of a step, who finds it needs no registry.
			d.Kill()
			d.start(t)
			g.do(g.status(http.StatusForbidden))
			out, err = d.solve(t, sh(diff(g.address), sumAll+" # again"))
			require.NoError(t, err, out)
			require.Contains(t, out, want)
		})
	}
}

// The diff of one layer is that layer, and is compared with those below it.
func TestLazyDiffOfLayer(t *testing.T) {
	needs(t)
	lower := pushLazy(t)
	upper := strings.TrimSuffix(lower, "base") + "upper"
	startDaemon(t, ours).build(t, upon(t, registry(t)+"/"+lower, "echo upper >/upper"), "--output", estargz(registry(t)+"/"+upper))
	layers := onlyImage(t, registry(t)+"/"+upper).Manifest.Layers
	g, g2 := newGate(t), newGate(t)
	g2.do(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, layers[len(layers)-1].Digest.String()) {
			g2.forward.ServeHTTP(w, r)
			return
		}
		http.Error(w, "only that layer", http.StatusForbidden)
	})
	diff := func(address string) llb.State {
		return llb.Diff(llb.Image(address+"/"+lower), llb.Image(address+"/"+upper))
	}
	reads := func(address string) llb.State {
		return llb.Image(busybox(t)).Run(llb.Shlex("cat /diff/upper"), llb.AddMount("/diff", diff(address), llb.Readonly)).Root()
	}
	d := startLazy(t, onDemand)
	hold(t, d, upon(t, g.address+"/"+lower, "head -c 100 /one >/dev/null; echo begun; sleep 600"))
	for _, refused := range []string{"who makes it", "who finds it in the cache"} {
		out, err := d.as(t, g2.address, "builder", "secret").solve(t, reads(g2.address))
		require.Error(t, err, "%s\n%s", refused, out)
		require.Regexp(t, "is lazy, and not all here: .* (401 Unauthorized|403 Forbidden)", out)
		out, err = d.solve(t, diff(g.address))
		require.NoError(t, err, out)
	}
	out, err := d.solve(t, reads(g.address))
	require.NoError(t, err, out)
}

// A blob is made of the result of a step, and compared with the layers below it, for
// the build that exports it and not for the one that has run the step.
func TestLazyExportOfCached(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	g, g2 := newGate(t), newGate(t)
	step := func(address, made string) llb.State {
		base := llb.Image(address + "/" + name)
		return llb.Diff(base, base.Run(llb.Shlex("touch /"+made)).Root())
	}
	d := startLazy(t, onDemand)
	export := func(made string) (string, error) {
		return d.as(t, g2.address, "builder", "secret").solve(t, step(g2.address, made), "--output=type=image,name=exported")
	}
	out, err := d.solve(t, step(g.address, "first"))
	require.NoError(t, err, out)
	out, err = export("first")
	require.NoError(t, err, out)

	out, err = d.solve(t, step(g.address, "second"))
	require.NoError(t, err, out)
	d.Kill()
	d.start(t)
	g2.do(g2.status(http.StatusForbidden))
	out, err = export("second")
	require.Error(t, err, out)
	require.Regexp(t, "is lazy, and not all here: .* (401 Unauthorized|403 Forbidden)", out)
}

// hold runs a build whose step says that it has begun, until the test ends.
func hold(t *testing.T, d *daemon, dir string) {
	t.Helper()
	c := d.command(t.Context(), "buildx", "build", "--progress=plain", dir)
	stderr, err := c.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	for lines := bufio.NewReader(stderr); ; {
		line, err := lines.ReadString('\n')
		require.NoError(t, err, "the step has not begun")
		if strings.HasSuffix(line, " begun\n") {
			return
		}
	}
}

// solve builds a state without a frontend, and returns what the client said.
func (d *daemon) solve(t *testing.T, state llb.State, args ...string) (string, error) {
	t.Helper()
	def, err := state.Marshal(t.Context(), llb.LinuxAmd64)
	require.NoError(t, err)
	var in bytes.Buffer
	require.NoError(t, llb.WriteTo(def, &in))
	c := d.command(t.Context(), "buildctl", append([]string{"build", "--progress=plain"}, args...)...)
	c.Stdin = &in
	out, err := c.CombinedOutput()
	return string(out), err
}

// A cache mount upon a step's result has the files below it. BuildKit neither sums them
// up nor mounts the result when a build finds both in the cache.
func TestLazyCacheMountOfStep(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	want := sums(t, registry(t)+"/"+name)
	g, g2 := newGate(t), newGate(t)
	g2.do(g2.status(http.StatusForbidden))
	reads := func(address, command string) llb.State {
		step := llb.Image(address + "/" + name).Run(llb.Shlex("head -c 100 /one")).Root()
		return llb.Image(busybox(t)).Run(llb.Shlex("sh -c '"+command+"'"), llb.AddMount("/cache", step,
			llb.AsPersistentCacheDir("a", llb.CacheMountShared), llb.ForceNoOutput, llb.ContentCache(llb.MountContentCacheOff))).Root()
	}
	const sumCache = "cd /cache; cat one two small/* | md5sum"
	d := startLazy(t, onDemand)
	out, err := d.solve(t, reads(g.address, "true"))
	require.NoError(t, err, out)
	hold(t, d, upon(t, g.address+"/"+name, "head -c 100 /one >/dev/null; echo begun; sleep 600"))
	before := g.bytes()
	out, err = d.as(t, g2.address, "builder", "secret").solve(t, reads(g2.address, sumCache))
	require.Error(t, err, out)
	require.Regexp(t, "is lazy, and not all here: .* (401 Unauthorized|403 Forbidden)", out)
	require.Equal(t, before, g.bytes())

	d.Kill()
	d.start(t)
	out, err = d.solve(t, reads(g.address, sumCache))
	require.NoError(t, err, out)
	require.Contains(t, out, want)
}
