package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/cachedigest"
	"github.com/stretchr/testify/require"
)

func ask(h http.Handler, method, target, accept string) *httptest.ResponseRecorder {
	request := httptest.NewRequest(method, target, nil)
	request.Header.Set("Accept", accept)
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, request)
	return answer
}

func TestDebugRoutes(t *testing.T) {
	d := &debugServer{cache: &cacheInspector{}}
	routes := d.routes()
	require.Equal(t, http.StatusServiceUnavailable, ask(routes, "GET", "/debug/cache/store", "").Code)
	d.showCache(solver.NewInMemoryCacheStorage())
	for target, status := range map[string]int{
		"/metrics":                     http.StatusOK,
		"/debug/vars":                  http.StatusOK,
		"/debug/pprof/":                http.StatusOK,
		"/debug/pprof/goroutine":       http.StatusOK,
		"/debug/pprof/cmdline":         http.StatusOK,
		"/debug/requests":              http.StatusOK,
		"/debug/events":                http.StatusOK,
		"/debug/gc":                    http.StatusOK,
		"/debug/cache/all":             http.StatusOK,
		"/debug/cache/lookup":          http.StatusBadRequest,
		"/debug/cache/lookup?digest=x": http.StatusBadRequest,
		"/debug/flight/trace":          http.StatusConflict,
		"/nothing":                     http.StatusNotFound,
		"/debug/cache/lookup?digest=" + string(rootPath): http.StatusOK,
	} {
		require.Equal(t, status, ask(routes, "GET", target, "").Code, target)
	}
}

func TestCacheTexts(t *testing.T) {
	db, err := cachedigest.NewDB(filepath.Join(t.TempDir(), "debug.db"))
	require.NoError(t, err)
	before := cachedigest.GetDefaultDB()
	cachedigest.SetDefaultDB(db)
	t.Cleanup(func() {
		cachedigest.SetDefaultDB(before)
		db.Close()
	})
	inner, err := db.FromBytes([]byte("inner"), cachedigest.TypeString)
	require.NoError(t, err)
	outer, err := db.FromBytes([]byte("outer "+inner), cachedigest.TypeString)
	require.NoError(t, err)
	db.Wait()

	routes := (&debugServer{cache: &cacheInspector{}}).routes()
	text := ask(routes, "GET", "/debug/cache/lookup?digest="+string(outer), "")
	require.Equal(t, "text/plain", text.Header().Get("Content-Type"))
	require.Contains(t, text.Body.String(), "  data: outer "+string(inner))
	require.Contains(t, text.Body.String(), "  data: inner")

	var all []cachedigest.Record
	answer := ask(routes, "GET", "/debug/cache/all", "application/json")
	require.Equal(t, "application/json", answer.Header().Get("Content-Type"))
	require.NoError(t, json.Unmarshal(answer.Body.Bytes(), &all))
	require.Len(t, all, 2)

	unknown := "sha256:" + strings.Repeat("0", 64)
	require.Equal(t, http.StatusNotFound, ask(routes, "GET", "/debug/cache/lookup?digest="+unknown, "").Code)
}

func TestFlightRecorder(t *testing.T) {
	routes := (&debugServer{cache: &cacheInspector{}}).routes()
	const trace = "/debug/flight/trace"
	require.Equal(t, http.StatusConflict, ask(routes, "POST", trace+"/stop", "").Code)
	require.Equal(t, http.StatusBadRequest, ask(routes, "POST", trace+"/set_period?period=long", "").Code)
	require.Equal(t, http.StatusOK, ask(routes, "POST", trace+"/set_period?period=1s", "").Code)
	require.Equal(t, http.StatusOK, ask(routes, "POST", trace+"/start", "").Code)
	require.Equal(t, http.StatusConflict, ask(routes, "POST", trace+"/start", "").Code)
	require.Equal(t, http.StatusPreconditionFailed, ask(routes, "POST", trace+"/set_period?period=1s", "").Code)
	answer := ask(routes, "GET", trace, "")
	require.Equal(t, http.StatusOK, answer.Code)
	require.NotZero(t, answer.Body.Len())
	require.Equal(t, http.StatusOK, ask(routes, "POST", trace+"/stop", "").Code)
}
