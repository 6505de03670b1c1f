package frontend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/solver/result"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/util/bklog"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// image is a frontend that copies a file into an image for each platform.
func image(config ocispecs.ImageConfig, ps ...ocispecs.Platform) fakeFrontend {
	return func(ctx context.Context, bridge frontend.FrontendLLBBridge, _ map[string]string) (*frontend.Result, error) {
		res := &frontend.Result{}
		var all exptypes.Platforms
		for _, p := range ps {
			id := p.OS + "/" + p.Architecture
			all.Platforms = append(all.Platforms, exptypes.Platform{ID: id, Platform: p})
			encoded, err := json.Marshal(ocispecs.Image{Platform: p, Config: config})
			if err != nil {
				return nil, err
			}
			one, err := solveState(ctx, bridge, llb.Scratch().File(llb.Mkfile("/"+p.Architecture, 0o600, nil)))
			if err != nil {
				return nil, err
			}
			res.AddRef(id, one.Ref)
			res.AddMeta(exptypes.ExporterImageConfigKey+"/"+id, encoded)
		}
		encoded, err := json.Marshal(all)
		res.AddMeta(exptypes.ExporterPlatformsKey, encoded)
		return res, err
	}
}

var testCache = []client.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": "cache"}}}

var testPolicy = []*spb.Policy{{Version: 1}}

func solveState(ctx context.Context, bridge frontend.FrontendLLBBridge, st llb.State) (*frontend.Result, error) {
	def, err := st.Marshal(ctx)
	if err != nil {
		return nil, err
	}
	return bridge.Solve(ctx, frontend.SolveRequest{Definition: def.ToPB(), CacheImports: testCache, SourcePolicies: testPolicy}, "sid")
}

func solveImage(t *testing.T, b *fakeBridge, attrs map[string]string, f fakeFrontend) *frontend.Result {
	ctx, _ := wishing(t, attrs)
	res, err := New(f, options()).Solve(ctx, b, nil, nil, nil, "sid", nil)
	require.NoError(t, err)
	t.Cleanup(func() {
		release(ctx, res)
		require.Zero(t, b.alive, "results that nobody releases")
	})
	return res
}

// marked returns the only marked command that was built.
func marked(t *testing.T, b *fakeBridge) (operation, *graph) {
	for _, def := range b.built {
		g, err := parse(def)
		require.NoError(t, err)
		if op := g.ops[digest.Digest(g.head.Digest)]; op.GetExec() != nil {
			return op, g
		}
	}
	t.Fatal("no command was built")
	return operation{}, nil
}

func TestEntrypointCommand(t *testing.T) {
	for name, tc := range map[string]struct {
		config ocispecs.ImageConfig
		attrs  map[string]string
		meta   *pb.Meta
		net    pb.NetMode
		title  string
	}{
		"entrypoint and cmd": {
			config: ocispecs.ImageConfig{Entrypoint: []string{"/app"}, Cmd: []string{"--port", "1"}},
			meta:   &pb.Meta{Args: []string{"/app", "--port", "1"}, Cwd: "/"},
			title:  "[profile linux/amd64] /app --port 1",
		},
		"shell form": {
			config: ocispecs.ImageConfig{Entrypoint: []string{"/bin/sh", "-c", "exec app $A"}},
			meta:   &pb.Meta{Args: []string{"/bin/sh", "-c", "exec app $A"}, Cwd: "/"},
			title:  "[profile linux/amd64] /bin/sh -c exec app $A",
		},
		"cmd alone": {
			config: ocispecs.ImageConfig{Cmd: []string{"node", "a.js"}},
			meta:   &pb.Meta{Args: []string{"node", "a.js"}, Cwd: "/"},
			title:  "[profile linux/amd64] node a.js",
		},
		"user, workdir, env": {
			config: ocispecs.ImageConfig{Cmd: []string{"id"}, User: "1000:1000", WorkingDir: "/srv/app", Env: []string{"PATH=/opt", "A=b=c", "EMPTY="}},
			meta:   &pb.Meta{Args: []string{"id"}, User: "1000:1000", Cwd: "/srv/app", Env: []string{"PATH=/opt", "A=b=c", "EMPTY="}},
			title:  "[profile linux/amd64] id",
		},
		"another command": {
			config: ocispecs.ImageConfig{Entrypoint: []string{"/app"}, Cmd: []string{"serve"}},
			attrs:  map[string]string{"estargz-profile-cmd": "/app 'self test'", "estargz-profile-network": "sandbox"},
			meta:   &pb.Meta{Args: []string{"/app", "self test"}, Cwd: "/"},
			net:    pb.NetMode_UNSET,
			title:  "[profile linux/amd64] /app self test",
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := &fakeBridge{t: t}
			solveImage(t, b, tc.attrs, image(tc.config, amd64))
			op, _ := marked(t, b)
			exec := op.GetExec()
			require.Equal(t, tc.meta.Args, exec.Meta.Args)
			require.Equal(t, tc.meta.Cwd, exec.Meta.Cwd)
			require.Equal(t, tc.meta.User, exec.Meta.User)
			require.ElementsMatch(t, tc.meta.Env, exec.Meta.Env)
			if tc.attrs == nil {
				tc.net = pb.NetMode_NONE
			}
			require.Equal(t, tc.net, exec.Network)
			require.Equal(t, pb.SecurityMode_SANDBOX, exec.Security)
			require.Equal(t, tc.title, op.metadata.Description["llb.customname"])
			require.Equal(t, "amd64", op.Platform.Architecture)
			require.False(t, op.metadata.IgnoreCache)

			require.Len(t, exec.Mounts, 2)
			require.Equal(t, "/", exec.Mounts[0].Dest)
			require.EqualValues(t, 0, exec.Mounts[0].Input)
			require.Equal(t, testDir, exec.Mounts[1].Dest)
			require.EqualValues(t, pb.Empty, exec.Mounts[1].Input)
			require.Equal(t, "RECORD=true 10s 2s ", exec.Mounts[1].ResultID)
		})
	}
}

// A frontend that does not name the base image of a target is asked what the
// target begins with; one that does is believed.
func TestBaseOfOtherFrontends(t *testing.T) {
	for _, says := range []bool{false, true} {
		b := &fakeBridge{t: t, config: []byte(`{"rootfs":{"diff_ids":["sha256:a","sha256:b"]}}`)}
		f := fakeFrontend(func(ctx context.Context, bridge frontend.FrontendLLBBridge, _ map[string]string) (*frontend.Result, error) {
			res, err := solveState(ctx, bridge, llb.Image("base").File(llb.Mkdir("/a", 0o700)))
			if err == nil && says {
				res.AddMeta(exptypes.ExporterImageBaseConfigKey, []byte("{}"))
			}
			return res, err
		})
		res := solveImage(t, b, map[string]string{"estargz-profile-cmd": "app"}, f)
		var want []byte
		if !says {
			want = []byte(`["sha256:a","sha256:b"]`)
		}
		require.Equal(t, string(want), string(res.Metadata[profile.BaseKey("linux/amd64")]))
	}
}

// The same target has to lead to the same operation, or nothing is cached.
func TestEntrypointIsTheSameAgain(t *testing.T) {
	config := ocispecs.ImageConfig{Cmd: []string{"id"}, Env: []string{"B=1", "A=2"}}
	var seen []string
	for range 2 {
		b := &fakeBridge{t: t}
		solveImage(t, b, nil, image(config, amd64))
		op, _ := marked(t, b)
		seen = append(seen, string(op.encoded))
	}
	require.Equal(t, seen[0], seen[1])
}

func TestDerivedSolvesUseWhatTheTargetUsed(t *testing.T) {
	b := &fakeBridge{t: t}
	solveImage(t, b, nil, image(ocispecs.ImageConfig{Cmd: []string{"id"}}, amd64))
	require.Len(t, b.solved, 2)
	require.Equal(t, testCache, b.solved[1].CacheImports)
	require.Equal(t, testPolicy, b.solved[1].SourcePolicies)
}

func TestNoCacheMeansTheWorkloadToo(t *testing.T) {
	b := &fakeBridge{t: t}
	f := fakeFrontend(func(ctx context.Context, bridge frontend.FrontendLLBBridge, _ map[string]string) (*frontend.Result, error) {
		return solveState(ctx, bridge, llb.Scratch().File(llb.Mkdir("/a", 0o700), llb.IgnoreCache))
	})
	solveImage(t, b, map[string]string{"estargz-profile-cmd": "id"}, f)
	op, _ := marked(t, b)
	require.True(t, op.metadata.IgnoreCache)
}

func TestPlatforms(t *testing.T) {
	b := &fakeBridge{t: t}
	res := solveImage(t, b, nil, image(ocispecs.ImageConfig{Cmd: []string{"app"}}, amd64, arm64))
	require.Equal(t, []string{"app"}, paths(t, res, "linux/amd64"))
	require.Empty(t, paths(t, res, "linux/arm64"))
	require.Equal(t, []string{"profile of linux/arm64: this builder cannot run it"}, b.warnings)
	require.Len(t, b.built, 3, "two targets and a workload")
}

func TestWarnings(t *testing.T) {
	for name, tc := range map[string]struct {
		cmd     []string
		summary string
		want    string
		paths   []string
	}{
		"no command":     {nil, "", "profile of linux/amd64: the image has neither ENTRYPOINT nor CMD: give it one, or estargz-profile-cmd", nil},
		"fails":          {[]string{"fails"}, "", `profile of linux/amd64: process "fails" did not complete`, nil},
		"reads nothing":  {[]string{"reads nothing"}, "", "profile of linux/amd64: no file was read", nil},
		"something lost": {[]string{"app"}, "events were lost", "profile of linux/amd64: events were lost", []string{"app"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := &fakeBridge{t: t, summary: tc.summary, fails: func(command string) bool { return command == "fails" }}
			res := solveImage(t, b, nil, image(ocispecs.ImageConfig{Cmd: tc.cmd}, amd64))
			require.Equal(t, []string{tc.want}, b.warnings)
			require.Equal(t, tc.paths, paths(t, res, "linux/amd64"))
		})
	}
}

// A recording that stays mounted is one for the log.
func TestUnmountFails(t *testing.T) {
	b := &fakeBridge{t: t}
	f := New(image(ocispecs.ImageConfig{Cmd: []string{"app"}}, amd64), options())
	f.open = func(ctx context.Context, res solver.Result, sid string) (string, func() error, error) {
		dir, _, err := open(ctx, res, sid)
		return dir, func() error { return errors.New("it is busy") }, err
	}
	var log bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&log)
	ctx, _ := wishing(t, nil)
	ctx = bklog.WithLogger(ctx, logrus.NewEntry(logger))
	res, err := f.Solve(ctx, b, nil, nil, nil, "sid", nil)
	require.NoError(t, err)
	require.Equal(t, []string{"app"}, paths(t, res, "linux/amd64"))
	require.Contains(t, log.String(), "it is busy")
	release(ctx, res)
}

// A recording that is not complete, and from an earlier build, is made again; it
// is used if that does not help, and never kept with an exported cache.
func TestIncompleteRecording(t *testing.T) {
	for name, again := range map[string]bool{"of an earlier build": true, "of this build": false} {
		t.Run(name, func(t *testing.T) {
			b := &fakeBridge{t: t, summary: "events were lost"}
			opts := options()
			opts.Judge = func([]byte) Verdict {
				v := Verdict{Complaint: "events were lost", Incomplete: true, Began: time.Now()}
				if again {
					v.Began = time.Time{}
				}
				return v
			}
			ctx, w := wishing(t, nil)
			w.exportsCache = true
			res, err := New(image(ocispecs.ImageConfig{Cmd: []string{"app"}}, amd64), opts).Solve(ctx, b, nil, nil, nil, "sid", nil)
			require.NoError(t, err)
			var ignoring []bool
			for _, def := range b.built {
				g, err := parse(def)
				require.NoError(t, err)
				if op := g.ops[digest.Digest(g.head.Digest)]; op.GetExec() != nil {
					ignoring = append(ignoring, op.metadata.IgnoreCache)
				}
			}
			require.Equal(t, []bool{false, true}[:len(ignoring)], ignoring)
			require.Equal(t, again, len(ignoring) == 2)
			require.Equal(t, []string{"app"}, paths(t, res, "linux/amd64"))
			require.Equal(t, []string{"profile of linux/amd64: events were lost"}, b.warnings)
			g, err := parse(refOf(res, "linux/amd64").Definition())
			require.NoError(t, err)
			require.Nil(t, g.ops[digest.Digest(g.head.Digest)].GetPassthrough(), "kept with the image")
			release(ctx, res)
			require.Zero(t, b.alive)
		})
	}
}

func TestFailedTargetIsAnError(t *testing.T) {
	b := &fakeBridge{t: t, fails: func(command string) bool { return command == "make" }}
	f := fakeFrontend(func(ctx context.Context, bridge frontend.FrontendLLBBridge, _ map[string]string) (*frontend.Result, error) {
		return solveState(ctx, bridge, llb.Scratch().Run(llb.Args([]string{"make"})).Root())
	})
	for _, workload := range []string{"entrypoint", "run"} {
		ctx, _ := wishing(t, map[string]string{"estargz-profile": workload})
		_, err := New(f, options()).Solve(ctx, b, nil, nil, nil, "sid", nil)
		require.EqualError(t, err, `process "make" did not complete`)
		require.Zero(t, b.alive)
	}
}

func TestFrontendError(t *testing.T) {
	f := fakeFrontend(func(context.Context, frontend.FrontendLLBBridge, map[string]string) (*frontend.Result, error) {
		return nil, errors.New("no Dockerfile")
	})
	ctx, _ := wishing(t, nil)
	_, err := New(f, options()).Solve(ctx, &fakeBridge{t: t}, nil, nil, nil, "sid", nil)
	require.EqualError(t, err, "no Dockerfile")
}

func TestEmptyImage(t *testing.T) {
	b := &fakeBridge{t: t}
	f := fakeFrontend(func(context.Context, frontend.FrontendLLBBridge, map[string]string) (*frontend.Result, error) {
		res := &frontend.Result{}
		res.AddRef("linux/amd64", nil)
		return res, nil
	})
	res := solveImage(t, b, nil, f)
	require.Empty(t, paths(t, res, "linux/amd64"))
}

func TestUnwanted(t *testing.T) {
	b := &fakeBridge{t: t}
	res, err := New(image(ocispecs.ImageConfig{Cmd: []string{"app"}}, amd64), options()).Solve(t.Context(), b, nil, nil, nil, "sid", nil)
	require.NoError(t, err)
	require.Empty(t, b.built)
	require.Empty(t, paths(t, res, "linux/amd64"))
}

// An exported cache holds what its result needs, so that the result needs the
// profile; its files are those of the target.
func TestCacheExportTakesTheProfile(t *testing.T) {
	for workloads, profiles := range map[string]int{"entrypoint": 1, "run": 1, "entrypoint+run": 2} {
		t.Run(workloads, func(t *testing.T) {
			b := &fakeBridge{t: t}
			f := fakeFrontend(func(ctx context.Context, bridge frontend.FrontendLLBBridge, _ map[string]string) (*frontend.Result, error) {
				return solveState(ctx, bridge, llb.Scratch().Run(llb.Args([]string{"make"})).File(llb.Mkdir("/a", 0o700)))
			})
			ctx, w := wishing(t, map[string]string{"estargz-profile": workloads})
			w.requests[0].Command = []string{"app"}
			w.exportsCache = true
			res, err := New(f, options()).Solve(ctx, b, nil, nil, nil, "sid", nil)
			require.NoError(t, err)

			g, err := parse(res.Ref.Definition())
			require.NoError(t, err)
			op := g.ops[digest.Digest(g.head.Digest)]
			require.Equal(t, []int64{0}, op.GetPassthrough().GetOutputs())
			require.Len(t, op.Inputs, 1+profiles)
			require.NotNil(t, g.ops[digest.Digest(op.Inputs[0].Digest)].GetFile())
			for _, in := range op.Inputs[1:] {
				require.EqualValues(t, 1, in.Index)
				require.Len(t, g.ops[digest.Digest(in.Digest)].GetExec().Mounts, 2)
			}
			release(ctx, res)
			require.Zero(t, b.alive)
		})
	}
}

// A scan of the target for an SBOM must not build the target again.
func TestAttestationsAreAboutTheMarkedTarget(t *testing.T) {
	b := &fakeBridge{t: t}
	f := fakeFrontend(func(ctx context.Context, bridge frontend.FrontendLLBBridge, _ map[string]string) (*frontend.Result, error) {
		target := llb.Scratch().File(llb.Copy(llb.Local("context"), "/a", "/a")).Run(llb.Args([]string{"make"}))
		res, err := solveState(ctx, bridge, target.Root())
		if err != nil {
			return nil, err
		}
		scan := llb.Scratch().Run(llb.Args([]string{"scan"}))
		scan.AddMount("/target", target.Root(), llb.Readonly)
		scanned, err := solveState(ctx, bridge, scan.AddMount("/out", llb.Scratch()))
		if err != nil {
			return nil, err
		}
		res.AddAttestation("linux/amd64", result.Attestation[solver.ResultProxy]{Ref: scanned.Ref})
		res.AddAttestation("linux/amd64", result.Attestation[solver.ResultProxy]{})
		return res, nil
	})
	res := solveImage(t, b, map[string]string{"estargz-profile": "run"}, f)
	target := commands(t, res.Ref.Definition())
	scan := commands(t, res.Attestations["linux/amd64"][0].Ref.Definition())
	require.Len(t, target["make"], 1)
	require.Equal(t, target["make"], scan["make"])
	require.Len(t, scan["scan"], 1)
	require.Equal(t, []string{"make"}, paths(t, res, "linux/amd64", "", "run"))
}
