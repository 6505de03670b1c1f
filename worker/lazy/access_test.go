package lazy

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/session"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// A private registry gives its blob to the sessions that it knows.
type private struct {
	*httptest.Server
	blob []byte
	toc  digest.Digest
	root string // of those who open it

	mu      sync.Mutex
	known   map[string]bool
	alive   map[string]bool
	answers map[string]int // by session
	last    string         // range that was answered
}

func servePrivate(t *testing.T, files int) *private {
	p := &private{root: t.TempDir(), known: map[string]bool{}, alive: map[string]bool{}, answers: map[string]int{}}
	p.blob, p.toc = layerOf(t, files)
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		session := r.Header.Get("X-Session")
		known := p.known[session]
		if known {
			p.answers[session]++
			p.last = r.Header.Get("Range")
		}
		p.mu.Unlock()
		if !known {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p.blob))
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *private) set(session string, known, alive bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known[session], p.alive[session] = known, alive
}

func (p *private) answered(session string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answers[session]
}

func (p *private) lastRange() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

func (p *private) name() string { return strings.TrimPrefix(p.URL, "http://") }

// mount shows the layer in a directory until the test ends.
func (p *private) mount(t *testing.T, l *Layers) (id, dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	id, err := l.ID(p.labels(""))
	require.NoError(t, err)
	dir = t.TempDir()
	require.NoError(t, l.Mount(id, dir, p.labels("")))
	t.Cleanup(func() { require.NoError(t, l.Unmount(dir)) })
	return id, dir
}

// open opens layers that are fetched from the registry.
func (p *private) open(t *testing.T, c Config) *Layers {
	t.Helper()
	at, err := url.Parse(p.URL)
	require.NoError(t, err)
	l, err := New(p.root, Options{
		Hosts: func(_ reference.Spec, session string) ([]docker.RegistryHost, error) {
			return []docker.RegistryHost{{
				Client: p.Client(), Host: at.Host, Scheme: at.Scheme, Path: "/v2",
				Header: http.Header{"X-Session": {session}}, Capabilities: docker.HostCapabilityPull,
			}}, nil
		},
		Alive: func(session string) bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.alive[session]
		},
		Config: c,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l
}

// labels are those of a call with a session.
func (p *private) labels(session string) map[string]string {
	ref := p.name() + "/base:latest"
	labels := map[string]string{
		refLabel: ref, digestLabel: digest.FromBytes(p.blob).String(), estargz.TOCDigestAnnotation: p.toc.String(),
	}
	if session != "" {
		labels[refLabel+".x"], labels[sessionLabel+".0.x"] = ref, session
	}
	return labels
}

// fetch is what a snapshotter asks for on behalf of a session.
func (p *private) fetch(t *testing.T, l *Layers, session string) error {
	id, err := l.ID(p.labels(""))
	require.NoError(t, err)
	return l.Fetch(WithLabels(t.Context(), p.labels(session)), id)
}

func layerOf(t *testing.T, files int) ([]byte, digest.Digest) {
	t.Helper()
	var b bytes.Buffer
	toc, err := estargz.Write(t.Context(), &b, bytes.NewReader(tarOf(t, files)), estargz.Options{})
	require.NoError(t, err)
	return b.Bytes(), toc.TOCDigest
}

// A build that may not read a layer gets nothing of it, whatever another one has
// fetched, and what it is told names the registry and the reason. One that may
// is asked for a proof once.
func TestAccess(t *testing.T) {
	p := servePrivate(t, 10)
	l := p.open(t, Config{})
	p.set("right", true, true)
	p.set("wrong", false, true)
	refused := func(err error) {
		t.Helper()
		require.ErrorContains(t, err, "401 Unauthorized")
		require.ErrorContains(t, err, p.name())
	}
	refused(p.fetch(t, l, "wrong"))
	require.NoError(t, p.fetch(t, l, "right"))
	before := p.answered("right")
	require.NoError(t, l.Announce(t.Context(), p.labels("right")))
	require.NoError(t, p.fetch(t, l, "right"))
	require.Equal(t, before, p.answered("right"))

	refused(p.fetch(t, l, "wrong"))
	refused(l.Announce(t.Context(), p.labels("wrong")))
	refused(l.Announce(t.Context(), p.labels("")))

	p.set("second", true, true)
	require.NoError(t, l.Announce(t.Context(), p.labels("second")))
	require.NoError(t, l.Announce(t.Context(), p.labels("second")))
	require.Equal(t, 1, p.answered("second"))
	elsewhere := p.labels("second")
	elsewhere[refLabel+".x"] = p.name() + "/another:latest"
	require.NoError(t, l.Announce(t.Context(), elsewhere))
	require.Equal(t, 1, p.answered("second"), "it has shown its rights at a home")
	elsewhere[refLabel] = elsewhere[refLabel+".x"]
	id, err := l.ID(elsewhere)
	require.NoError(t, err)
	require.NoError(t, l.Fetch(WithLabels(t.Context(), elsewhere), id))
	require.Contains(t, l.homes[id], place{p.name(), "another"}, "a snapshot is kept with the place")

	p.set("right", true, false)
	p.set("third", true, true)
	require.NoError(t, l.Announce(t.Context(), p.labels("third")))
	require.NotContains(t, l.grants, grant{"right", place{p.name(), "base"}}, "its session has ended")
}

// A build whose session has ended shows nothing with the credentials of another,
// though both share a step. It may read on with them if it had shown before that it
// may read.
func TestAccessOfSharedStep(t *testing.T) {
	p := servePrivate(t, 10)
	l := p.open(t, Config{NoPrefetch: true, NoBackgroundFetch: true})
	p.set("first", true, true)
	p.set("right", true, true)
	require.NoError(t, p.fetch(t, l, "first"))
	_, dir := p.mount(t, l)
	require.NoError(t, l.Announce(t.Context(), p.labels("first")))
	all := func(digest.Digest) bool { return true }
	end := l.Watch(t.Context(), all, session.NewGroup("first", "wrong", "right"))
	defer func() { require.NoError(t, end(nil)) }()

	p.set("wrong", false, false)
	require.ErrorContains(t, l.Announce(t.Context(), p.labels("wrong")), "have ended")
	require.ErrorContains(t, p.fetch(t, l, "wrong"), "have ended")
	require.Zero(t, p.answered("right"))

	p.set("first", true, false)
	_, err := os.ReadFile(dir + "/file-0")
	require.NoError(t, err)
	require.NotZero(t, p.answered("right"))
}

// A build whose registry is gone is told so before its step begins, and does not
// wait as long as a process that reads.
func TestAccessOfGoneRegistry(t *testing.T) {
	p := servePrivate(t, 10)
	l := p.open(t, Config{Deadline: config.Duration{Duration: 20 * time.Second}, MountTimeout: config.Duration{Duration: time.Second}})
	p.set("right", true, true)
	require.NoError(t, p.fetch(t, l, "right"))
	p.Close()
	p.set("second", true, true)
	err := l.Announce(t.Context(), p.labels("second"))
	for _, part := range []string{"base:latest is lazy", "not all here", "from " + p.name(), "no answer after 1s, see mount_timeout", "connection refused"} {
		require.ErrorContains(t, err, part)
	}
}

// A layer that is mounted again fetches nothing before a build comes that may,
// and then goes on.
func TestMountedAgain(t *testing.T) {
	p := servePrivate(t, 10)
	l := p.open(t, Config{NoPrefetch: true})
	p.set("right", true, true)
	require.NoError(t, p.fetch(t, l, "right"))
	id, dir := p.mount(t, l)

	_, err := os.ReadFile(dir + "/file-0")
	require.Error(t, err, "nobody is known who may read it")
	require.False(t, l.mounted[id].started)
	p.set("wrong", false, true)
	require.Error(t, l.Announce(t.Context(), p.labels("wrong")))
	_, err = os.ReadFile(dir + "/file-1")
	require.Error(t, err)
	require.NoError(t, l.Announce(t.Context(), p.labels("right")))
	got, err := os.ReadFile(dir + "/file-2")
	require.NoError(t, err)
	require.Equal(t, contentsOf(2), got)
	require.True(t, l.mounted[id].started)
}

// serveFetched serves a layer whose index has been fetched.
func serveFetched(t *testing.T) (p *private, l *Layers, id string) {
	p = servePrivate(t, 1)
	l = p.open(t, Config{})
	p.set("right", true, true)
	require.NoError(t, p.fetch(t, l, "right"))
	id, err := l.ID(p.labels(""))
	require.NoError(t, err)
	return p, l, id
}

// A mount that fails leaves nothing open.
func TestMountFails(t *testing.T) {
	p, l, id := serveFetched(t)
	require.Error(t, l.Mount(id, t.TempDir()+"/none", p.labels("")))
	require.Empty(t, l.mounted)
}

// A mount that cannot be unmounted is not forgotten when its directory is mounted again.
func TestMountUponMount(t *testing.T) {
	p, l, id := serveFetched(t)
	if os.Getuid() != 0 {
		t.Skip("mounts need root")
	}
	parent := filepath.Join(t.TempDir(), "parent")
	dir := filepath.Join(parent, "fs")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, l.Mount(id, dir, p.labels("")))

	require.NoError(t, os.Rename(parent, parent+"-away"))
	require.NoError(t, os.WriteFile(parent, nil, 0o644))
	require.ErrorIs(t, l.Unmount(dir), unix.ENOTDIR)
	require.ErrorIs(t, l.Mount(id, dir, p.labels("")), unix.ENOTDIR)
	require.False(t, l.Mounted(dir))
	require.NoError(t, os.Remove(parent))
	require.NoError(t, os.Rename(parent+"-away", parent))

	require.NoError(t, l.Mount(id, dir, p.labels("")))
	require.True(t, l.Mounted(dir))
	require.NoError(t, l.Unmount(dir))
	require.Empty(t, l.mounted)
	mounted, err := mountinfo.Mounted(dir)
	require.NoError(t, err)
	require.False(t, mounted)
}
