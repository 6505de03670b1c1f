package blob

import (
	"fmt"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
)

// authorized puts credentials on requests, by the registry's challenge.
type authorized struct {
	next       http.RoundTripper
	authorizer docker.Authorizer
	scope      string
}

// challenges is how often a request is made again after a 401: BuildKit's
// authorizer asks for a token when it sees the first one, and takes the second
// as the proof that a token it had is worth nothing any more.
const challenges = 2

func (a authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.authorizer == nil {
		return a.next.RoundTrip(r)
	}
	ctx := docker.WithScope(r.Context(), a.scope)
	var refusals []*http.Response
	for {
		attempt := r.Clone(ctx)
		if err := a.authorizer.Authorize(ctx, attempt); err != nil {
			return nil, fmt.Errorf("credentials: %w", err)
		}
		resp, err := a.next.RoundTrip(attempt)
		if err != nil || resp.StatusCode != http.StatusUnauthorized || len(refusals) == challenges {
			return resp, err
		}
		refusals = append(refusals, resp)
		if err := a.authorizer.AddResponses(ctx, refusals); errdefs.IsNotImplemented(err) {
			return resp, nil
		} else if err != nil {
			discard(resp)
			return nil, fmt.Errorf("credentials: %w", err)
		}
		discard(resp)
	}
}
