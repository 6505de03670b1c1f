package integration

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
)

var loginsMu sync.Mutex

// logIn writes a password where clients look for it.
func logIn(t *testing.T, dir, address, user, password string) {
	t.Helper()
	loginsMu.Lock()
	defer loginsMu.Unlock()
	require.NoError(t, os.MkdirAll(dir, 0o700))
	file := filepath.Join(dir, "config.json")
	config := struct {
		Auths map[string]map[string]string `json:"auths"`
	}{map[string]map[string]string{}}
	if text, err := os.ReadFile(file); err == nil {
		require.NoError(t, json.Unmarshal(text, &config))
	}
	config.Auths[address] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}
	text, err := json.Marshal(config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file+".new", text, 0o600))
	require.NoError(t, os.Rename(file+".new", file))
}

// as is the daemon as used by a client with this password, or with none.
func (d *daemon) as(t *testing.T, address, user, password string) *daemon {
	t.Helper()
	other := *d
	other.logins = tempDir(t)
	if user != "" {
		logIn(t, other.logins, address, user, password)
	}
	return &other
}

// A private registry gives a build what its own client may read, for as long as
// it lives, whatever others do.
func TestLazyCredentials(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	want := sums(t, registry(t)+"/"+name)
	repository, _, _ := strings.Cut(name, ":")
	pinned := repository + "@" + resolve(t, registry(t)+"/"+name).Digest.String()

	t.Run("basic", func(t *testing.T) {
		g := newGate(t)
		g.login.Basic = true
		d := startLazy(t, onDemand)
		require.Equal(t, want, sum(t, d.build(t, upon(t, g.address+"/"+name, "head -c 100 /one >/dev/null; "+sumAll))))
		g.requireLazy(t, name)
	})

	// Those that may not read fail beside one that does, by tag and by digest.
	for _, kind := range []string{"bearer", "basic"} {
		t.Run("wrong and none beside right, "+kind, func(t *testing.T) {
			g := newGate(t)
			g.login.Basic = kind == "basic"
			g.login.Users["second"] = "other secret"
			d := startLazy(t, onDemand)
			d.build(t, upon(t, g.address+"/"+pinned, "true"))
			var wg sync.WaitGroup
			var right *progress
			var rightErr error
			wg.Go(func() {
				right, rightErr = d.tryBuild(t, upon(t, g.address+"/"+pinned, "sleep 3; "+sumAll))
			})
			for _, base := range []string{name, pinned} {
				for _, c := range []*daemon{d.as(t, g.address, "builder", "wrong"), d.as(t, "", "", "")} {
					_, err := c.tryBuild(t, upon(t, g.address+"/"+base, "cat /two >/dev/null"))
					require.ErrorContains(t, err, g.address)
					require.Regexp(t, "401|no basic auth|authorization failed", err.Error())
				}
			}
			second := d.as(t, g.address, "second", "other secret")
			require.Equal(t, want, sum(t, second.build(t, upon(t, g.address+"/"+pinned, "sleep 1; "+sumAll+" # second"))))
			wg.Wait()
			require.NoError(t, rightErr)
			require.Equal(t, want, sum(t, right))
			g.requireLazy(t, name)
		})
	}

	t.Run("after a restart", func(t *testing.T) {
		g := newGate(t)
		d := startLazy(t, onDemand)
		d.build(t, upon(t, g.address+"/"+name, "head -c 100 /one"))
		d.Kill()
		requireNoSessions(t, d)
		d.start(t)
		_, err := d.as(t, g.address, "builder", "wrong").tryBuild(t, upon(t, g.address+"/"+pinned, "cat /two >/dev/null"))
		require.ErrorContains(t, err, g.address)
		require.Equal(t, want, sum(t, d.build(t, upon(t, g.address+"/"+name, sumAll))))
		g.requireLazy(t, name)
	})
}

// Builds that share a step share what is read for it, and one of them may end in the
// middle: the step goes on with the credentials of those that are left.
func TestLazySharedStep(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	want := sums(t, registry(t)+"/"+name)
	for _, c := range []struct{ reader, binary, last string }{
		{"a command", ours, "RUN " + sumAll},
		{"unpacking", withoutFUSE(t), "RUN " + sumAll},
		{"a checksum", ours, "FROM " + busybox(t) + "\nRUN --mount=from=base,target=/base cd /base; cat one two small/* | md5sum"},
	} {
		t.Run(c.reader, func(t *testing.T) {
			g, d := newGate(t), startLazy(t, onDemand)
			d.build(t, upon(t, g.address+"/"+name, "true"))
			if c.binary != d.Binary {
				d.Kill()
				d.Binary = c.binary
				d.start(t)
			}
			p := shareStep(t, g, d, writeFiles(t, map[string]string{"Dockerfile": "FROM " + g.address + "/" + name + " AS base\n" + c.last + "\n"}))
			require.Equal(t, want, sum(t, p))
			g.requireLazy(t, name)
		})
	}
}

// shareStep has two builds share a step that prints a checksum. The first one is killed
// when the step reads the base, and the progress is that of the second.
func shareStep(t *testing.T, g *gate, d *daemon, dir string) *progress {
	t.Helper()
	read, released := make(chan struct{}), make(chan struct{})
	var once sync.Once
	g.do(func(w http.ResponseWriter, r *http.Request) {
		if !isProbe(r) {
			once.Do(func() { close(read) })
			select {
			case <-released:
			case <-r.Context().Done():
				return
			}
		}
		g.forward.ServeHTTP(w, r)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	first := d.command(ctx, "buildx", "build", "--progress=quiet", dir)
	require.NoError(t, first.Start())
	awaitRequest(ctx, t, read)

	second := d.command(ctx, "buildx", "build", "--progress=rawjson", dir)
	stderr, err := second.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, second.Start())
	lines := bufio.NewReader(stderr)
	for shares := false; !shares; {
		line, err := lines.ReadBytes('\n')
		require.NoError(t, err, "the step has not begun")
		var status client.SolveStatus
		if json.Unmarshal(line, &status) == nil {
			shares = slices.ContainsFunc(status.Vertexes, func(v *client.Vertex) bool { return strings.Contains(v.Name, "md5sum") })
		}
	}
	require.NoError(t, first.Process.Kill())
	require.Error(t, first.Wait())
	close(released)
	p := readProgress(lines)
	require.NoError(t, second.Wait(), p.text())
	return p
}

// A build reads the result of a cached step with its own credentials, though BuildKit
// has it mounted for a build that has ended.
func TestLazyCachedResult(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	for how, second := range map[string][]string{
		"mounted":  {"RUN --mount=from=cached,source=/one,target=/c md5sum /c"},
		"exported": {"", "--target=cached", "--output=type=tar,dest=/dev/null"},
	} {
		t.Run(how, func(t *testing.T) {
			g := newGate(t)
			dockerfile := func(last string) string {
				return writeFiles(t, map[string]string{"Dockerfile": "FROM " + g.address + "/" + name + " AS cached\nRUN echo made >/made\nFROM " + busybox(t) + "\n" + last + "\n"})
			}
			d := startLazy(t, onDemand)
			d.build(t, dockerfile("RUN --mount=from=cached,source=/made,target=/c cat /c"))
			_, err := d.as(t, g.address, "builder", "wrong").tryBuild(t, dockerfile(second[0]), second[1:]...)
			require.Error(t, err)
			d.build(t, dockerfile(second[0]), second[1:]...)
			g.requireLazy(t, name)
		})
	}
}

// An SBOM names the layers of files. BuildKit lists those of lazy layers, which it pulls
// for it, also if it has not pulled them since it started.
func TestLazySBOM(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	from := busybox(t)
	scanner := base(t, "scanner-of-files", func(d *daemon, name string) {
		d.build(t, writeFiles(t, map[string]string{
			"Dockerfile": "FROM " + from + "\nCOPY scan.sh /\nENTRYPOINT [\"sh\", \"/scan.sh\"]\n",
			"scan.sh": `
cat >$BUILDKIT_SCAN_DESTINATION/sbom.spdx.json <<END
{"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://spdx.dev/Document",
 "predicate": {"spdxVersion": "SPDX-2.3", "SPDXID": "SPDXRef-DOCUMENT", "name": "files",
 "files": [{"SPDXID": "SPDXRef-one", "fileName": "one", "checksums": [{"algorithm": "SHA1", "checksumValue": "00"}]}]}}
END
`,
		}), "--output", "type=image,push=true,name="+name)
	})
	g, image := newGate(t), repository(t)+":latest"
	dir := upon(t, g.address+"/"+name, "echo made >/made")
	d := startLazy(t, onDemand)
	d.build(t, dir)
	d.Kill()
	d.start(t)
	d.build(t, dir, "--output", estargz(image), "--attest", "type=sbom,generator="+scanner)
	layers := onlyImage(t, image).Manifest.Layers
	one := "layerID: " + layers[len(layers)-4].Digest.String()
	require.True(t, slices.ContainsFunc(statements(t, image), func(s statement) bool { return strings.Contains(string(s.Predicate), one) }))
}

// A layer that BuildKit has unpacked as well stays lazy for builds that may not read it.
// BuildKit unpacks it to list its files, or for a build to which the registry did not
// serve it while it did to another.
func TestLazyUnpackedToo(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	g, g2 := newGate(t), newGate(t)
	dockerfile := func(address, last string) string {
		return writeFiles(t, map[string]string{"Dockerfile": "FROM " + address + "/" + name + " AS cached\nRUN echo made >/made\nFROM " + busybox(t) + "\nRUN --mount=from=cached,target=/c,source=" + last + "\n"})
	}
	d := startLazy(t, onDemand)
	d.build(t, dockerfile(g.address, "/made true"))
	d.Kill()
	markUnpacked(t, d)
	d.start(t)
	hold(t, d, dockerfile(g.address, "/made echo begun; sleep 600"))
	g2.do(g2.status(http.StatusForbidden))
	_, err := d.as(t, g2.address, "builder", "secret").tryBuild(t, dockerfile(g2.address, "/two md5sum /c"))
	require.ErrorContains(t, err, "is lazy, and not all here")
	d.build(t, dockerfile(g.address, "/two md5sum /c"))
	g.requireLazy(t, name)
}

// markUnpacked changes the records of a daemon that was killed as BuildKit does when it
// has unpacked a layer.
func markUnpacked(t *testing.T, d *daemon) {
	t.Helper()
	store, err := metadata.NewStore(filepath.Join(d.Dir, "root", "runc-stargz", "metadata_v2.db"))
	require.NoError(t, err)
	defer store.Close()
	no, err := metadata.NewValue(false)
	require.NoError(t, err)
	items, err := store.All()
	require.NoError(t, err)
	for _, item := range items {
		if item.Get("cache.blobonly") != nil {
			require.NoError(t, item.Update(func(b *bbolt.Bucket) error { return item.SetValue(b, "cache.blobonly", no) }))
		}
	}
}

// While a registry is asked whether a build may read the result of a cached step, others
// do not wait.
func TestAskingHoldsUpNobody(t *testing.T) {
	needs(t)
	name := pushLazy(t)
	g := newGate(t)
	dockerfile := func(last string) string {
		return writeFiles(t, map[string]string{"Dockerfile": "FROM " + g.address + "/" + name + " AS cached\nRUN echo made >/made\nFROM " + busybox(t) + "\n" + last + "\n"})
	}
	d := startLazy(t, onDemand+"mount_timeout = \"10m\"\n")
	d.build(t, dockerfile("RUN --mount=from=cached,source=/made,target=/c cat /c"))
	d.Kill()
	d.start(t)
	asked, answer := make(chan struct{}, 1000), make(chan struct{})
	release := sync.OnceFunc(func() { close(answer) })
	defer release()
	g.do(func(w http.ResponseWriter, r *http.Request) {
		if isProbe(r) {
			asked <- struct{}{}
			<-answer
		}
		g.forward.ServeHTTP(w, r)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	first := d.command(ctx, "buildx", "build", dockerfile("RUN --mount=from=cached,source=/one,target=/c md5sum /c"))
	require.NoError(t, first.Start())
	awaitRequest(ctx, t, asked)
	soon, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	for _, args := range [][]string{{"buildctl", "du"}, {"buildctl", "prune", "--keep-duration=24h"}, {"buildx", "build", "--target=cached", dockerfile("")}} {
		out, err := d.command(soon, args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%v\n%s", args, out)
	}
	release()
	require.NoError(t, first.Wait())
}

// requireNoSessions looks for labels with sessions in the databases of a daemon
// that was killed.
func requireNoSessions(t *testing.T, d *daemon) {
	t.Helper()
	root := filepath.Join(d.Dir, "root", "runc-stargz")
	for _, name := range []string{"containerdmeta.db", "metadata_v2.db", "snapshots/snapshotter/metadata.db"} {
		db, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		require.NotContains(t, string(db), "stargz.session", name)
	}
}
