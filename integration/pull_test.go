package integration

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/shaped"
)

// Wrong bytes from a registry, of a manifest, a configuration or a layer, fail one
// pull and not the next.
func TestPullAfterWrongBytes(t *testing.T) {
	needs(t)
	name := repositoryName(t) + ":base"
	startDaemon(t, ours).build(t, writeFiles(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"}),
		"--output", "type=image,push=true,name="+registry(t)+"/"+name)

	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry(t)})
	var mu sync.Mutex
	answered := map[string]bool{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		wrong := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "sha256:") && !answered[r.URL.Path]
		answered[r.URL.Path] = answered[r.URL.Path] || wrong
		mu.Unlock()
		if wrong {
			w = &shaped.WrongWriter{ResponseWriter: w}
		}
		forward.ServeHTTP(w, r)
	}))
	defer srv.Close()
	dir := writeFiles(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY --from=" + srv.Listener.Addr().String() + "/" + name + " /Dockerfile /\n"})
	d := startDaemon(t, ours)
	for _, what := range []string{"manifest", "config", "layer"} {
		_, err := d.tryBuild(t, dir)
		require.ErrorContains(t, err, `"`+what+"-sha256:")
		require.ErrorContains(t, err, "unexpected commit digest")
	}
	d.build(t, dir)
	// Nor does one that failed keep what is here in use.
	requireNothingInUse(t, d)
}
