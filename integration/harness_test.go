package integration

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// Servers of one kind run side by side, each with a port and files of its own.
func TestTwoRegistries(t *testing.T) {
	needs(t)
	var addresses []string
	for range 2 {
		r, err := harness.StartRegistry(t.Context(), bin, tempDir(t))
		require.NoError(t, err)
		serve(t, r.Process, err)
		addresses = append(addresses, r.Address)
	}
	require.NotEqual(t, addresses[0], addresses[1])
	for _, a := range addresses {
		res, err := http.Get("http://" + a + "/v2/")
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, http.StatusOK, res.StatusCode)
	}
}
