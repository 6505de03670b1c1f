package lazy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// asNamed opens layers whose registries are those of their images' names.
func asNamed(t *testing.T, alive func(session string) bool) *Layers {
	t.Helper()
	c := Config{NoBackgroundFetch: true, NoPrefetch: true}
	l, err := New(t.TempDir(), Options{
		Hosts: func(ref reference.Spec, session string) ([]docker.RegistryHost, error) {
			return []docker.RegistryHost{{
				Client: http.DefaultClient, Host: ref.Hostname(), Scheme: "http", Path: "/v2",
				Header: http.Header{"X-Session": {session}}, Capabilities: docker.HostCapabilityPull,
			}}, nil
		},
		Alive: alive, Config: c,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l
}

func anybody(string) bool { return true }

// serve serves blobs by their digests, and one of them as any other.
func serve(t *testing.T, blobs map[digest.Digest][]byte) (name string) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, d, _ := strings.Cut(r.URL.Path, "/blobs/")
		blob, ok := blobs[digest.Digest(d)]
		if !ok {
			http.NotFound(w, r)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	}))
	t.Cleanup(server.Close)
	at, err := url.Parse(server.URL)
	require.NoError(t, err)
	return at.Host
}

// bare are the labels of a snapshot, called those of a session's call.
func bare(registry string, blob, toc digest.Digest) map[string]string {
	return map[string]string{refLabel: registry + "/base:latest", digestLabel: blob.String(), estargz.TOCDigestAnnotation: toc.String()}
}

func called(registry string, blob, toc digest.Digest, session string) map[string]string {
	labels := map[string]string{sessionLabel + ".0.x": session}
	for name, value := range bare(registry, blob, toc) {
		labels[name], labels[name+".x"] = value, value
	}
	return labels
}

// readAll reads the files of a layer that is mounted for a snapshot with these
// labels.
func readAll(t *testing.T, l *Layers, labels map[string]string, files int) {
	t.Helper()
	id, err := l.ID(labels)
	require.NoError(t, err)
	layer, err := l.acquire(id, labels)
	require.NoError(t, err)
	defer l.release(id)
	for i := range files {
		n, ok := layer.Lookup(0, fmt.Sprintf("file-%d", i))
		require.True(t, ok)
		want := contentsOf(i)
		got := make([]byte, len(want))
		_, err := layer.ReadAt(t.Context(), n, got, 0)
		if err != io.EOF {
			require.NoError(t, err)
		}
		require.Equal(t, want, got)
	}
}

// movedTOC is a blob whose TOC starts elsewhere, which its footer says.
func movedTOC(t *testing.T, blob []byte, by int64) []byte {
	t.Helper()
	footer := blob[len(blob)-estargz.FooterSize:]
	at, err := estargz.FindTOC(footer, int64(len(blob)))
	require.NoError(t, err)
	moved := bytes.Replace(footer, fmt.Appendf(nil, "%016x", at), fmt.Appendf(nil, "%016x", at+by), 1)
	padded := append(bytes.Clone(blob[:min(at, at+by)]), make([]byte, max(by, 0))...)
	return append(append(padded, blob[at:len(blob)-len(footer)]...), moved...)
}

// A layer that was first seen in a registry that lies about where its TOC starts,
// or under another blob's digest, is read all the same by those who have it from
// another registry. BuildKit has them use the same snapshot.
func TestLyingRegistry(t *testing.T) {
	const files = 10
	blob, toc := layerOf(t, files)
	d, other := digest.FromBytes(blob), digest.FromString("another blob")
	honest := serve(t, map[digest.Digest][]byte{d: blob})
	for name, lie := range map[string]struct {
		digest digest.Digest
		blob   []byte
	}{
		"before":       {d, movedTOC(t, blob, -50)},
		"behind":       {d, movedTOC(t, blob, 4096)},
		"far behind":   {d, movedTOC(t, blob, 1<<20)},
		"another blob": {other, blob},
	} {
		t.Run(name, func(t *testing.T) {
			var ended atomic.Bool
			l := asNamed(t, func(session string) bool { return session != "liar" || !ended.Load() })
			liar := serve(t, map[digest.Digest][]byte{lie.digest: lie.blob})
			snapshot := bare(liar, lie.digest, toc)
			id, err := l.ID(snapshot)
			require.NoError(t, err)
			require.NoError(t, l.Fetch(WithLabels(t.Context(), called(liar, lie.digest, toc, "liar")), id))
			ended.Store(true)

			labels := called(honest, d, toc, "honest")
			maps.Copy(labels, snapshot)
			require.NoError(t, l.Announce(t.Context(), labels))
			readAll(t, l, snapshot, files)
		})
	}
}

// A registry that answers anything gets nobody to a layer that another one has.
func TestAnyAnswerIsNoProof(t *testing.T) {
	p := servePrivate(t, 10)
	p.set("right", true, true)
	d := digest.FromBytes(p.blob)
	public, publicTOC := layerOf(t, 3)
	publicDigest := digest.FromBytes(public)
	junk := append(bytes.Repeat([]byte("rubbish!"), 1000), p.blob[len(p.blob)-estargz.FooterSize:]...)
	liar := serve(t, map[digest.Digest][]byte{d: junk, publicDigest: public})
	l := asNamed(t, anybody)
	id, err := l.ID(bare(p.name(), d, p.toc))
	require.NoError(t, err)
	publicID, err := l.ID(bare(liar, publicDigest, publicTOC))
	require.NoError(t, err)
	fetch := func(id, registry string, d, toc digest.Digest, session string) error {
		return l.Fetch(WithLabels(t.Context(), called(registry, d, toc, session)), id)
	}

	require.NoError(t, fetch(id, p.name(), d, p.toc, "right"))
	require.NoError(t, fetch(publicID, liar, publicDigest, publicTOC, "wrong"), "the liar may have other layers")
	require.Error(t, fetch(id, liar, d, p.toc, "wrong"))
	labels := called(liar, d, p.toc, "wrong")
	labels[refLabel] = p.name() + "/base:latest"
	require.ErrorContains(t, l.Announce(t.Context(), labels), "not all here")
	layer, err := l.acquire(id, bare(p.name(), d, p.toc))
	require.NoError(t, err)
	defer l.release(id)
	require.ErrorContains(t, l.Announce(t.Context(), labels), "not all here")
	require.Zero(t, layer.Stats().Present)

	// One that has the layer needs no other's credentials.
	mirror := serve(t, map[digest.Digest][]byte{d: p.blob})
	answers := p.answered("right")
	require.NoError(t, fetch(id, mirror, d, p.toc, "other"))
	require.NoError(t, l.Announce(t.Context(), called(mirror, d, p.toc, "other")))
	require.Equal(t, answers, p.answered("right"))
}

// A layer that was mounted by an earlier run is asked of the registry that its
// snapshot names.
func TestProofAfterRestart(t *testing.T) {
	p := servePrivate(t, 10)
	p.set("right", true, true)
	p.set("wrong", false, true)
	l := p.open(t, Config{NoPrefetch: true, NoBackgroundFetch: true})
	require.NoError(t, p.fetch(t, l, "right"))
	require.NoError(t, l.Close())
	again := p.open(t, Config{NoPrefetch: true, NoBackgroundFetch: true})
	id, err := again.ID(p.labels(""))
	require.NoError(t, err)
	_, err = again.acquire(id, p.labels(""))
	require.NoError(t, err)
	defer again.release(id)
	before := p.answered("right")
	require.ErrorContains(t, again.Announce(t.Context(), p.labels("wrong")), "401 Unauthorized")
	require.NoError(t, again.Announce(t.Context(), p.labels("right")))
	require.NoError(t, again.Announce(t.Context(), p.labels("right")))
	require.Equal(t, before+1, p.answered("right"))
	require.Equal(t, "bytes=0-0", p.lastRange())
}

// What one build fetches ahead nobody else waits for.
func TestLookaheadOfOthers(t *testing.T) {
	blob, toc := layerOf(t, 3)
	d, first := digest.FromBytes(blob), digest.FromString("first")
	asked, end := make(chan struct{}, 10), make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-end
	}))
	defer slow.Close()
	defer close(end)
	l := asNamed(t, anybody)
	labels := called(strings.TrimPrefix(slow.URL, "http://"), first, toc, "slow")
	labels[layersLabel] = first.String() + "," + d.String()
	id, err := l.ID(labels)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Fetch(WithLabels(ctx, labels), id) }()
	<-asked
	<-asked
	registry := serve(t, map[digest.Digest][]byte{d: blob})
	labels = called(registry, d, toc, "other")
	id, err = l.ID(labels)
	require.NoError(t, err)
	require.NoError(t, l.Fetch(WithLabels(t.Context(), labels), id))
	cancel()
	require.Error(t, <-done)
}

// A layer below one that is being prepared may be in another repository.
func TestFetchBelow(t *testing.T) {
	blob, toc := layerOf(t, 3)
	d, above := digest.FromBytes(blob), digest.FromString("above")
	l := asNamed(t, anybody)
	has, hasNot := serve(t, map[digest.Digest][]byte{d: blob}), serve(t, nil)
	id, err := l.ID(bare(has, d, toc))
	require.NoError(t, err)
	require.NoError(t, l.Announce(t.Context(), called(has, d, toc, "a")))
	require.NoError(t, l.Remove(id))
	require.NoError(t, l.Fetch(WithLabels(t.Context(), called(hasNot, above, toc, "b")), id))
	require.NoError(t, l.Remove(id))
	l = asNamed(t, anybody)
	require.Error(t, l.Fetch(WithLabels(t.Context(), called(hasNot, above, toc, "b")), id))
	require.NoError(t, l.Fetch(WithLabels(t.Context(), called(has, above, toc, "b")), id), "the image's repository is as good a guess")
}

// Who takes what was fetched ahead with the credentials of another has to show his.
func TestLookaheadNeedsCredentials(t *testing.T) {
	p := servePrivate(t, 3)
	l := p.open(t, Config{})
	p.set("right", true, true)
	p.set("wrong", false, true)
	d := digest.FromBytes(p.blob)
	for _, session := range []string{"wrong", "right"} {
		sources := l.places(p.labels("right"))
		l.ahead.start(l.line, d, sources)
		l.ahead.mu.Lock()
		tail := l.ahead.tails[tailOf(d, sources)]
		l.ahead.mu.Unlock()
		<-tail.done
		before := p.answered("right")
		err := p.fetch(t, l, session)
		require.Equal(t, session == "right", err == nil, session)
		require.Equal(t, before, p.answered("right"))
		require.NoError(t, l.Remove(d.String()+"@"+p.toc.String()))
	}
}

// A chunk that came corrupt several times is refused for a while, and asked for
// again at once for a build that comes then.
func TestCorruptForAnotherBuild(t *testing.T) {
	const files = 3
	blob, toc := layerOf(t, files)
	d := digest.FromBytes(blob)
	corrupt := bytes.Clone(blob)
	at, err := estargz.FindTOC(blob[len(blob)-estargz.FooterSize:], int64(len(blob)))
	require.NoError(t, err)
	clear(corrupt[:at])
	blobs := map[digest.Digest][]byte{d: corrupt}
	registry := serve(t, blobs)
	l := asNamed(t, anybody)
	labels := called(registry, d, toc, "some session")
	id, err := l.ID(labels)
	require.NoError(t, err)
	require.NoError(t, l.Fetch(WithLabels(t.Context(), labels), id))
	layer, err := l.acquire(id, labels)
	require.NoError(t, err)
	defer l.release(id)
	require.NoError(t, l.Announce(t.Context(), labels))
	n, ok := layer.Lookup(0, "file-0")
	require.True(t, ok)
	_, err = layer.ReadAt(t.Context(), n, make([]byte, 1), 0)
	require.ErrorContains(t, err, "corrupt")

	blobs[d] = blob
	_, err = layer.ReadAt(t.Context(), n, make([]byte, 1), 0)
	require.ErrorContains(t, err, "corrupt", "for the same build")
	require.NoError(t, l.Announce(t.Context(), labels))
	readAll(t, l, labels, files)
}
