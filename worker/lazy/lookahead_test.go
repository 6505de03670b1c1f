package lazy

import (
	"archive/tar"
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
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
			end, size, err := fetchTOC(t.Context(), b)
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
