package blob

import (
	"net/http"
	"strings"

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
			return nil, &credentialsError{err}
		}
		resp, err := a.next.RoundTrip(attempt)
		if err != nil || resp.StatusCode != http.StatusUnauthorized || len(refusals) == challenges {
			return resp, err
		}
		saysExpired(attempt, resp)
		refusals = append(refusals, resp)
		if err := a.authorizer.AddResponses(ctx, refusals); errdefs.IsNotImplemented(err) {
			return resp, nil
		} else if err != nil {
			discard(resp)
			return nil, &credentialsError{err}
		}
		discard(resp)
	}
}

// saysExpired makes a refusal say why, where a registry leaves it out: a token
// came with the request, and was not good. BuildKit's authorizer would else keep
// it.
func saysExpired(r *http.Request, refusal *http.Response) {
	const header = "WWW-Authenticate"
	challenge := refusal.Header.Get(header)
	if isBearer(r.Header.Get("Authorization")) && isBearer(challenge) && !strings.Contains(challenge, "error=") {
		refusal.Header.Set(header, challenge+`,error="invalid_token"`)
	}
}

func isBearer(header string) bool {
	scheme, _, _ := strings.Cut(header, " ")
	return strings.EqualFold(scheme, "Bearer")
}
