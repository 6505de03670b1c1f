package lazy

import (
	"archive/tar"
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/blob"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// TestFetchTOC brings along what the end of a blob lacks of its TOC, unless it
// would fill the memory.
func TestFetchTOC(t *testing.T) {
	for name, c := range map[string]struct {
		blob []byte
		all  bool // of the TOC
		more int  // requests than one
	}{
		"small":  {blobOf(t, 100), true, 0},
		"medium": {blobOf(t, 20_000), true, 1},
		"large":  {blobOf(t, 100_000), false, 0},
		"none":   {bytes.Repeat([]byte("rubbish!"), tailSize), true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			requests := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests++
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(c.blob))
			}))
			defer server.Close()
			at, err := url.Parse(server.URL)
			require.NoError(t, err)
			host := docker.RegistryHost{Client: server.Client(), Host: at.Host, Scheme: at.Scheme, Path: "/v2", Capabilities: docker.HostCapabilityPull}
			b := blob.NewLine(blob.Options{}).Open(digest.FromBytes(c.blob), blob.Source{
				Registry: at.Host, Repository: "base",
				Hosts: func() ([]docker.RegistryHost, error) { return []docker.RegistryHost{host}, nil },
			})
			end, size, err := fetchTOC(t.Context(), b, func(int64) bool { return true })
			require.NoError(t, err)
			require.Equal(t, int64(len(c.blob)), size)
			require.True(t, bytes.HasSuffix(c.blob, end))
			require.Equal(t, 1+c.more, requests)
			_, missing := store.MissingTOC(end, size)
			require.Equal(t, c.all, missing == 0)
		})
	}
}

// blobOf has as many empty files, and a TOC that is not compressed.
func blobOf(t *testing.T, files int) []byte {
	t.Helper()
	var p, b bytes.Buffer
	w := tar.NewWriter(&p)
	for i := range files {
		require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/share/doc/%06d", i), Mode: 0o644}))
	}
	require.NoError(t, w.Close())
	_, err := estargz.Write(t.Context(), &b, &p, estargz.Options{Level: estargz.NoCompression})
	require.NoError(t, err)
	return b.Bytes()
}

// tarOf has files with contents.
func tarOf(t *testing.T, files int) []byte {
	t.Helper()
	var p bytes.Buffer
	w := tar.NewWriter(&p)
	for i := range files {
		c := contentsOf(i)
		require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("file-%d", i), Mode: 0o644, Size: int64(len(c))}))
		_, err := w.Write(c)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return p.Bytes()
}

func contentsOf(i int) []byte { return bytes.Repeat([]byte(fmt.Sprint("contents of ", i, "\n")), 1000) }

// What is fetched ahead and not taken is bounded in all.
func TestLookaheadHasRoom(t *testing.T) {
	small, large := blobOf(t, 100), blobOf(t, 20_000) // with a TOC of more than tailSize
	d := digest.FromBytes(large)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		blob := small
		if strings.HasSuffix(r.URL.Path, d.String()) {
			blob = large
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	}))
	defer server.Close()
	at, err := url.Parse(server.URL)
	require.NoError(t, err)
	host := docker.RegistryHost{Client: server.Client(), Host: at.Host, Scheme: at.Scheme, Path: "/v2", Capabilities: docker.HostCapabilityPull}
	sources := []blob.Source{{Repository: "base", Hosts: func() ([]docker.RegistryHost, error) { return []docker.RegistryHost{host}, nil }}}
	line, a := blob.NewLine(blob.Options{}), newLookahead()
	defer a.close()
	start := func(d digest.Digest) *tail {
		a.start(line, d, sources)
		a.mu.Lock()
		tail := a.tails[tailOf(d, sources)]
		a.mu.Unlock()
		if tail != nil {
			<-tail.done
		}
		return tail
	}
	left := func() int64 {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.left
	}

	a.left = tailSize + int64(len(small))
	require.NotNil(t, start("sha256:a"))
	require.EqualValues(t, tailSize, left())
	require.Equal(t, tailSize, len(start(d).bytes), "no room for the rest of the TOC")
	require.Zero(t, left())
	require.Nil(t, start("sha256:b"))
	p, size, own, err := a.take(t.Context(), d, sources)
	require.NoError(t, err)
	require.Equal(t, large[len(large)-tailSize:], p)
	require.EqualValues(t, len(large), size)
	require.True(t, own)
	require.EqualValues(t, tailSize, left())
	a.left += tocAhead
	require.Greater(t, len(start(d).bytes), tailSize)
	a.forget(tailOf(d, sources), a.tails[tailOf(d, sources)])
	a.forget(tailOf("sha256:a", sources), a.tails[tailOf("sha256:a", sources)])
	require.EqualValues(t, tailSize+int64(len(small))+tocAhead, left())
	require.Empty(t, a.tails)
	p, _, _, err = a.take(t.Context(), d, sources)
	require.NoError(t, err)
	require.Nil(t, p)
}
