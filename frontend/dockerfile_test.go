package frontend

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// The tests of this file use BuildKit's Dockerfile frontend, with what it makes
// of stages, copies and the build context.

const staged = `
FROM scratch AS tools
COPY tool /tool
RUN ["/tool", "made"]

FROM scratch AS app
COPY app /app
RUN ["/app", "first"]
COPY --from=tools /made /made
COPY --link linked /linked
RUN ["/app", "second"]
ENTRYPOINT ["/app"]
CMD ["serve"]

FROM app AS profile
COPY fixture /fixture
RUN ["/app", "warm"]
RUN ["/app", "warmer"]

FROM app AS idle
ENV A=b
`

func newBridge(t *testing.T, file string) *fakeBridge {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o600))
	return &fakeBridge{t: t, context: dir}
}

func build1(t *testing.T, b *fakeBridge, attrs map[string]string) *frontend.Result {
	ctx, _ := wishing(t, attrs)
	res, err := New(dockerfiles(), options()).Solve(ctx, b, nil, map[string]string{"target": "app"}, nil, "sid", nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		release(ctx, res)
		require.Zero(t, b.alive, "results that nobody releases")
	})
	return res
}

func TestWorkloads(t *testing.T) {
	for workloads, want := range map[string][]string{
		"entrypoint":           {"app serve"},
		"run":                  {"app first", "app second"},
		"stage":                {"app warm", "app warmer"},
		"run+stage":            {"app first", "app second", "app warm", "app warmer"},
		"entrypoint+run+stage": {"app first", "app second", "app serve", "app warm", "app warmer"},
	} {
		t.Run(workloads, func(t *testing.T) {
			b := newBridge(t, staged)
			res := build1(t, b, map[string]string{"estargz-profile": workloads})
			require.Equal(t, want, paths(t, res, "linux/amd64", "", workloads))
			require.Empty(t, b.warnings)
		})
	}
}

// What is built must be what the frontend made, but for the marks.
func TestTargetIsBuiltOnce(t *testing.T) {
	for _, workloads := range []string{"stage", "run+stage", "entrypoint+run+stage"} {
		t.Run(workloads, func(t *testing.T) {
			b := newBridge(t, staged)
			res := build1(t, b, map[string]string{"estargz-profile": workloads})
			target := commands(t, res.Ref.Definition())
			require.Equal(t, 1, target["/tool made"].versions())
			for _, def := range b.built {
				for command, vertices := range commands(t, def) {
					if strings.HasPrefix(command, "/app warm") || command == "/app serve" {
						continue
					}
					require.Equal(t, target[command], vertices, "%s is another vertex than the target's", command)
				}
			}
		})
	}
}

type vertices map[digest.Digest]bool

func (v vertices) versions() int { return len(v) }

func commands(t *testing.T, def *pb.Definition) map[string]vertices {
	g, err := parse(def)
	require.NoError(t, err)
	found := map[string]vertices{}
	for _, d := range reachable(g) {
		if exec := g.ops[d].GetExec(); exec != nil {
			command := strings.Join(exec.Meta.Args, " ")
			if found[command] == nil {
				found[command] = vertices{}
			}
			found[command][d] = true
		}
	}
	return found
}

// Each exporter gets what it asked for, and a step is recorded once for all.
func TestRequestsSideBySideInOneBuild(t *testing.T) {
	b := newBridge(t, staged)
	ctx, w := wishing(t, map[string]string{"estargz-profile": "run"})
	for _, attrs := range []map[string]string{estargz(), estargz("", "run+stage", "-stage", "idle")} {
		r, _, err := profile.ParseRequest(attrs, profile.Default())
		require.NoError(t, err)
		w.requests = append(w.requests, r)
	}
	res, err := New(dockerfiles(), options()).Solve(ctx, b, nil, map[string]string{"target": "app"}, nil, "sid", nil)
	require.NoError(t, err)
	require.Equal(t, []string{"app first", "app second"}, paths(t, res, "linux/amd64", "", "run"))
	require.Equal(t, []string{"app serve"}, paths(t, res, "linux/amd64"))
	require.Equal(t, []string{"app first", "app second"}, paths(t, res, "linux/amd64", "", "run+stage", "-stage", "idle"))
	require.Empty(t, paths(t, res, "linux/amd64", "", "stage"))
	release(ctx, res)
	require.Zero(t, b.alive)
}

func TestStageBringsItsOwnContext(t *testing.T) {
	b := newBridge(t, staged)
	build1(t, b, map[string]string{"estargz-profile": "stage"})
	last, err := parse(b.built[len(b.built)-1])
	require.NoError(t, err)
	var wanted []string
	for _, d := range reachable(last) {
		wanted = append(wanted, last.ops[d].GetSource().GetAttrs()[pb.AttrFollowPaths])
	}
	require.Contains(t, strings.Join(wanted, " "), "fixture")
}

func TestStageWithoutSteps(t *testing.T) {
	b := newBridge(t, staged)
	res := build1(t, b, map[string]string{"estargz-profile": "stage", "estargz-profile-stage": "idle"})
	require.Empty(t, paths(t, res, "linux/amd64", "", "stage", "-stage", "idle"))
	require.Equal(t, []string{"profile of linux/amd64: stage idle adds no RUN step to the target"}, b.warnings)
}

func TestUnknownStage(t *testing.T) {
	b := newBridge(t, staged)
	ctx, _ := wishing(t, map[string]string{"estargz-profile": "stage", "estargz-profile-stage": "profiel"})
	_, err := New(dockerfiles(), options()).Solve(ctx, b, nil, map[string]string{"target": "app"}, nil, "sid", nil)
	require.ErrorContains(t, err, "estargz-profile=stage: stage profiel, name another one with estargz-profile-stage: ")
	require.ErrorContains(t, err, "could not be found")
	for _, def := range b.built {
		require.Empty(t, commands(t, def), "nothing is run before the name is known")
	}
}

func TestFailedStageWarns(t *testing.T) {
	b := newBridge(t, staged)
	b.fails = func(command string) bool { return command == "/app warmer" }
	res := build1(t, b, map[string]string{"estargz-profile": "stage"})
	require.Equal(t, []string{"app warm"}, paths(t, res, "linux/amd64", "", "stage"))
	require.Equal(t, []string{`profile of linux/amd64: process "/app warmer" did not complete`}, b.warnings)
}

// What holds for every step is said once.
func TestSameWarningOnce(t *testing.T) {
	b := newBridge(t, staged)
	b.summary = "not recorded: the daemon is rootless"
	build1(t, b, map[string]string{"estargz-profile": "run+entrypoint"})
	require.Equal(t, []string{"profile of linux/amd64: not recorded: the daemon is rootless"}, b.warnings)
}

func TestSubrequestsAreNotBuilds(t *testing.T) {
	b := newBridge(t, staged)
	ctx, _ := wishing(t, nil)
	res, err := New(dockerfiles(), options()).Solve(ctx, b, nil, map[string]string{"requestid": "frontend.targets"}, nil, "sid", nil)
	require.NoError(t, err)
	require.Contains(t, string(res.Metadata["result.json"]), "profile")
}

// A "# syntax=" line makes the frontend call another one, here itself.
func TestNestedFrontend(t *testing.T) {
	b := newBridge(t, "# syntax=nested\n"+staged)
	opts := options()
	inner := &fakeBridge{t: t, context: b.context}
	image := fakeFrontend(func(ctx context.Context, bridge frontend.FrontendLLBBridge, opt map[string]string) (*frontend.Result, error) {
		// Requests of an image's frontend come through a pipe: their context
		// knows nothing of the build.
		return bridge.Solve(context.Background(), frontend.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: opt}, "sid")
	})
	inner.frontends = map[string]frontend.Frontend{"dockerfile.v0": New(dockerfiles(), opts)}
	b.frontends = map[string]frontend.Frontend{"gateway.v0": fakeFrontend(
		func(ctx context.Context, _ frontend.FrontendLLBBridge, opt map[string]string) (*frontend.Result, error) {
			return New(image, opts).Solve(ctx, inner, nil, opt, nil, "sid", nil)
		})}
	ctx, _ := wishing(t, map[string]string{"estargz-profile": "run"})
	res, err := New(dockerfiles(), opts).Solve(ctx, b, nil, map[string]string{"target": "app"}, nil, "sid", nil)
	require.NoError(t, err)
	require.Equal(t, []string{"app first", "app second"}, paths(t, res, "linux/amd64", "", "run"))
	require.Same(t, inner, res.Ref.(*fakeProxy).bridge, "the provenance is that of the inner frontend")
}
