package frontend

import (
	"context"
	"fmt"
	"sync"
	"testing"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client/buildid"
	"github.com/moby/buildkit/solver/pb"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// asking returns a build with an exporter for each of attrs.
func asking(ref string, attrs ...map[string]string) *controlapi.SolveRequest {
	req := &controlapi.SolveRequest{Ref: ref, Session: "one session for all"}
	for _, a := range attrs {
		req.Exporters = append(req.Exporters, &controlapi.Exporter{Type: "image", Attrs: a})
	}
	return req
}

func estargz(attrs ...string) map[string]string {
	m := map[string]string{"compression": "estargz"}
	for i := 0; i < len(attrs); i += 2 {
		m["estargz-profile"+attrs[i]] = attrs[i+1]
	}
	return m
}

// during calls the interceptor and f within its handler.
func during(t *testing.T, r *Requests, req *controlapi.SolveRequest, f func(ctx context.Context)) error {
	info := &grpc.UnaryServerInfo{FullMethod: controlapi.Control_Solve_FullMethodName}
	_, err := r.UnaryServerInterceptor(t.Context(), req, info, func(ctx context.Context, _ any) (any, error) {
		f(ctx)
		return nil, nil
	})
	return err
}

// gateway is the context of a request that a client-side gateway makes.
func gateway(t *testing.T, ref string) context.Context {
	out := buildid.AppendToOutgoingContext(t.Context(), ref)
	md, _ := metadata.FromOutgoingContext(out)
	return metadata.NewIncomingContext(t.Context(), md)
}

func TestRequestsOfBuild(t *testing.T) {
	r := NewRequests("estargz", profile.Default())
	require.NoError(t, during(t, r, asking("a", estargz("", "run")), func(ctx context.Context) {
		require.True(t, r.of(ctx).requests[0].Run, "a frontend within the call")
		require.True(t, r.of(gateway(t, "a")).requests[0].Run, "a frontend that the client calls")
		require.Nil(t, r.of(gateway(t, "b")))
		require.Nil(t, r.of(t.Context()))
	}))
	require.Nil(t, r.of(gateway(t, "a")), "the build is over")
}

func TestRequestsWanted(t *testing.T) {
	for name, tc := range map[string]struct {
		attrs  []map[string]string
		wanted int
	}{
		"by default":             {[]map[string]string{estargz()}, 1},
		"none":                   {[]map[string]string{estargz("", "none")}, 0},
		"another compression":    {[]map[string]string{{"compression": "zstd"}}, 0},
		"no exporter":            {nil, 0},
		"one with, one without":  {[]map[string]string{estargz("", "none"), estargz("-idle", "1s"), {}}, 1},
		"two that want the same": {[]map[string]string{estargz("-idle", "1s"), estargz("-idle", "1000ms")}, 1},
		"two that differ":        {[]map[string]string{estargz("", "run"), estargz(), estargz("", "run")}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewRequests("estargz", profile.Default())
			require.NoError(t, during(t, r, asking("a", tc.attrs...), func(ctx context.Context) {
				w := r.of(ctx)
				require.Equal(t, tc.wanted > 0, w != nil)
				if w != nil {
					require.Len(t, w.requests, tc.wanted)
				}
			}))
		})
	}
}

// A build that says nothing of profiles gets what the operator has set, and any
// other what it says.
func TestRequestsByDefault(t *testing.T) {
	operator := profile.Default()
	require.NoError(t, operator.SetDefault("estargz-profile", "none"))
	for attr, wanted := range map[string]bool{"": false, "entrypoint": true, "run": true} {
		attrs := estargz()
		if attr != "" {
			attrs = estargz("", attr)
		}
		r := NewRequests("estargz", operator)
		require.NoError(t, during(t, r, asking("a", attrs), func(ctx context.Context) {
			require.Equal(t, wanted, r.of(ctx) != nil, attr)
		}))
	}
}

// The operator's default is also about RUN steps, which a conversion has none of.
func TestRequestsToConvertByDefault(t *testing.T) {
	for workloads, wanted := range map[string]int{"run": 0, "entrypoint+run": 1, "entrypoint": 1, "none": 0} {
		operator := profile.Default()
		require.NoError(t, operator.SetDefault("estargz-profile", workloads))
		r := NewRequests("estargz", operator)
		require.NoError(t, during(t, r, asking("a", converting("app"), estargz()), func(ctx context.Context) {
			require.NotEmpty(t, r.of(ctx).source)
			require.Len(t, r.of(ctx).requests, wanted, workloads)
		}))
		require.NoError(t, during(t, r, asking("a", converting("app", "", "entrypoint")), func(ctx context.Context) {
			require.Len(t, r.of(ctx).requests, 1, workloads)
		}))
	}
}

// To write files nothing has to be run.
func TestRequestsOfFiles(t *testing.T) {
	for kind, wanted := range map[string]bool{"local": false, "tar": false, "image": true, "oci": true, "docker": true} {
		req := asking("a", estargz())
		req.Exporters[0].Type = kind
		r := NewRequests("estargz", profile.Default())
		require.NoError(t, during(t, r, req, func(ctx context.Context) {
			require.Equal(t, wanted, r.of(ctx) != nil, kind)
		}))
	}
}

func TestRequestsRefused(t *testing.T) {
	fromLLB := asking("a", estargz("", "entrypoint"))
	fromLLB.Definition = &pb.Definition{Def: [][]byte{{}}}
	for name, tc := range map[string]struct {
		req  *controlapi.SolveRequest
		want string
	}{
		"bad value":       {asking("a", estargz("-idle", "soon")), "estargz-profile-idle=soon: give a time"},
		"no entitlement":  {asking("a", estargz("-network", "host")), "estargz-profile-network=host: needs --allow network.host"},
		"no image to run": {fromLLB, "a build that is given as LLB has no image to run"},
	} {
		t.Run(name, func(t *testing.T) {
			err := during(t, NewRequests("estargz", profile.Default()), tc.req, func(context.Context) { t.Error("was built") })
			require.ErrorContains(t, err, tc.want)
		})
	}
}

func TestRequestsHostNetworkAllowed(t *testing.T) {
	req := asking("a", estargz("-network", "host"))
	req.Entitlements = []string{"network.host"}
	require.NoError(t, during(t, NewRequests("estargz", profile.Default()), req, func(context.Context) {}))
}

func TestRequestsOfLLBByDefault(t *testing.T) {
	req := asking("a", estargz())
	req.Definition = &pb.Definition{Def: [][]byte{{}}}
	r := NewRequests("estargz", profile.Default())
	require.NoError(t, during(t, r, req, func(ctx context.Context) { require.Nil(t, r.of(ctx)) }))
}

func TestRequestsOfOldClients(t *testing.T) {
	req := &controlapi.SolveRequest{
		Ref: "a", ExporterDeprecated: "image", ExporterAttrsDeprecated: estargz(),
		Cache: &controlapi.CacheOptions{ExportRefDeprecated: "cache"},
	}
	r := NewRequests("estargz", profile.Default())
	require.NoError(t, during(t, r, req, func(ctx context.Context) { require.True(t, r.of(ctx).exportsCache) }))
}

func TestRequestsExportedCache(t *testing.T) {
	for kind, want := range map[string]bool{"inline": false, "registry": true, "local": true} {
		req := asking("a", estargz())
		req.Cache = &controlapi.CacheOptions{Exports: []*controlapi.CacheOptionsEntry{{Type: kind}}}
		r := NewRequests("estargz", profile.Default())
		require.NoError(t, during(t, r, req, func(ctx context.Context) {
			require.Equal(t, want, r.of(ctx).exportsCache, kind)
		}))
	}
}

func TestRequestsIgnoreOtherCalls(t *testing.T) {
	r := NewRequests("estargz", profile.Default())
	info := &grpc.UnaryServerInfo{FullMethod: controlapi.Control_Info_FullMethodName}
	got, err := r.UnaryServerInterceptor(t.Context(), &controlapi.InfoRequest{}, info, func(context.Context, any) (any, error) {
		return "answer", nil
	})
	require.NoError(t, err)
	require.Equal(t, "answer", got)
}

// Builds side by side in one session must not get each other's profiles.
func TestRequestsSideBySide(t *testing.T) {
	r := NewRequests("estargz", profile.Default())
	var all sync.WaitGroup
	inside := make(chan struct{})
	var arrived sync.WaitGroup
	arrived.Add(50)
	for i := range 50 {
		all.Go(func() {
			ref := fmt.Sprint(i)
			err := during(t, r, asking(ref, estargz("-cmd", ref)), func(ctx context.Context) {
				arrived.Done()
				<-inside // until all builds are under way
				if got := r.of(ctx).requests[0].Command; got[0] != ref {
					t.Errorf("build %s got the request of %s", ref, got)
				}
				if got := r.of(gateway(t, ref)).requests[0].Command; got[0] != ref {
					t.Errorf("gateway of build %s got the request of %s", ref, got)
				}
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	arrived.Wait()
	close(inside)
	all.Wait()
	require.Empty(t, r.byRef)
}

func TestRequestsRefInUse(t *testing.T) {
	r := NewRequests("estargz", profile.Default())
	require.NoError(t, during(t, r, asking("a", estargz("", "run")), func(context.Context) {
		require.NoError(t, during(t, r, asking("a", estargz()), func(ctx context.Context) {
			require.Nil(t, r.of(ctx))
		}))
		require.True(t, r.of(gateway(t, "a")).requests[0].Run, "the first build still has its own")
	}))
}
