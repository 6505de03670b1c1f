package inspect

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/cli/cli/config"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// A server is a registry with one image, "team/app:latest". It counts what it
// sends, and asks for a password if it has one.
type server struct {
	*httptest.Server
	store    *store
	latest   ocispecs.Descriptor
	password string

	bytes     atomic.Int64
	requests  atomic.Int64
	mu        sync.Mutex
	blobBytes map[digest.Digest]int64
}

func serve(t *testing.T, s *store, latest ocispecs.Descriptor) *server {
	// The variable that names the directory is read once in a process.
	config.SetDir(t.TempDir())
	r := &server{store: s, latest: latest, blobBytes: map[digest.Digest]int64{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *server) image() string { return r.Listener.Addr().String() + "/team/app" }

func (r *server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.requests.Add(1)
	counting := &countingWriter{ResponseWriter: w}
	defer func() { r.bytes.Add(counting.n) }()
	if _, password, _ := req.BasicAuth(); password != r.password {
		counting.Header().Set("WWW-Authenticate", `Basic realm="r"`)
		counting.WriteHeader(http.StatusUnauthorized)
		return
	}
	kind, name, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/team/app/"), "/")
	d, mediaType := digest.Digest(name), "application/octet-stream"
	if name == "latest" {
		d = r.latest.Digest
	}
	data, ok := r.store.blobs[d]
	if !ok {
		counting.WriteHeader(http.StatusNotFound)
		return
	}
	if kind == "manifests" {
		mediaType = r.latest.MediaType
		counting.Header().Set("Docker-Content-Digest", d.String())
	}
	counting.Header().Set("Content-Type", mediaType)
	http.ServeContent(counting, req, "", time.Time{}, bytes.NewReader(data))
	if kind == "blobs" {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.blobBytes[d] += counting.n
	}
}

type countingWriter struct {
	http.ResponseWriter
	n int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n += int64(n)
	return n, err
}

// Of each layer the TOC and the footer are fetched, and no byte twice.
func TestFetched(t *testing.T) {
	s, desc := sample(t)
	r := serve(t, s, desc)
	im, err := Inspect(t.Context(), r.image(), Options{})
	require.NoError(t, err)
	for i, l := range im.Layers {
		want := int64(zstdFooterSize)
		if l.TOC != nil {
			want = max(want, l.TOC.Size+l.TOC.FooterSize)
		}
		require.Equal(t, want, r.blobBytes[l.Digest], "layer %d", i+1)
	}
	require.Equal(t, &Fetched{Requests: r.requests.Load(), Bytes: r.bytes.Load()}, im.Fetched)
	require.Less(t, im.Fetched.Bytes, im.Size/50)

	var text bytes.Buffer
	require.NoError(t, im.WriteText(&text, false))
	require.Contains(t, text.String(), fmt.Sprintf("%s fetched in %d requests", size(r.bytes.Load()), r.requests.Load()))
}

func TestPasswords(t *testing.T) {
	s, desc := sample(t)
	r := serve(t, s, desc)
	r.password = "secret"
	host := r.Listener.Addr().String()
	file := filepath.Join(config.Dir(), "config.json")
	helper := filepath.Join(t.TempDir(), "docker-credential-fake")
	script := "#!/bin/sh\nread host\necho '{\"ServerURL\": \"'$host'\", \"Username\": \"me\", \"Secret\": \"secret\"}'\n"
	require.NoError(t, os.WriteFile(helper, []byte(script), 0o700))
	t.Setenv("PATH", filepath.Dir(helper)+":"+os.Getenv("PATH"))

	for name, c := range map[string]struct{ config, says string }{
		"password": {fmt.Sprintf(`{"auths": {%q: {"auth": "bWU6c2VjcmV0"}}}`, host), ""}, // me:secret
		"helper":   {fmt.Sprintf(`{"credHelpers": {%q: "fake"}}`, host), ""},
		"none":     {`{}`, "no basic auth credentials"},
		"wrong":    {fmt.Sprintf(`{"auths": {%q: {"auth": "bWU6d3Jvbmc="}}}`, host), "401"},
		"no such":  {fmt.Sprintf(`{"credHelpers": {%q: "missing"}}`, host), "docker-credential-missing"},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(file, []byte(c.config), 0o600))
			im, err := Inspect(t.Context(), r.image(), Options{})
			if c.says != "" {
				require.ErrorContains(t, err, c.says)
				return
			}
			require.NoError(t, err)
			require.NotNil(t, im.Layers[0].reader)
		})
	}
}

// An image is found by its digest as well, and a missing one is named.
func TestNames(t *testing.T) {
	s, desc := sample(t)
	r := serve(t, s, desc)
	for _, name := range []string{":latest", "@" + desc.Digest.String(), ":latest@" + desc.Digest.String()} {
		im, err := Inspect(t.Context(), r.image()+name, Options{})
		require.NoError(t, err, name)
		require.Equal(t, desc.Digest, im.Digest)
	}
	_, err := Inspect(t.Context(), r.image()+":missing", Options{})
	require.ErrorContains(t, err, "team/app:missing")
}

// A blob that is not in the registry is a fault of its layer alone.
func TestMissingBlob(t *testing.T) {
	s, desc := sample(t)
	r := serve(t, s, desc)
	im, err := Inspect(t.Context(), r.image(), Options{})
	require.NoError(t, err)
	delete(s.blobs, im.Layers[0].Digest)
	im, err = Inspect(t.Context(), r.image(), Options{})
	require.NoError(t, err)
	require.Contains(t, im.Layers[0].Error, "404")
	require.NotNil(t, im.Layers[2].reader)
	require.EqualError(t, im.problems(), "1 of 8 layers cannot be mounted or checked")
}
