package frontend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/worker"
	"github.com/moby/sys/user"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

const (
	testDir  = "/.profile-output"
	testMark = "RECORD"
)

var (
	amd64 = platforms.MustParse("linux/amd64")
	arm64 = platforms.MustParse("linux/arm64")
)

// A fakeMarker says how a command is recorded in its output, for all to see.
type fakeMarker struct{}

func (fakeMarker) Mark(exec *pb.ExecOp, r Recording) error {
	at := slices.IndexFunc(exec.Mounts, func(m *pb.Mount) bool { return m.Dest == testDir })
	if at >= 0 && !strings.HasPrefix(exec.Mounts[at].ResultID, testMark) {
		return errors.New("something is there")
	}
	if at < 0 {
		at = len(exec.Mounts)
		exec.Mounts = append(exec.Mounts, &pb.Mount{Input: int64(pb.Empty), Dest: testDir, Output: int64(at)})
	}
	exec.Mounts[at].ResultID = fmt.Sprintf("%s=%t %s %s %s", testMark, r.Workload, r.Period, r.Idle, r.Ready)
	return nil
}

func (fakeMarker) Output(exec *pb.ExecOp) *pb.Mount {
	for _, m := range exec.GetMounts() {
		if m.Dest == testDir && strings.HasPrefix(m.ResultID, testMark) {
			return m
		}
	}
	return nil
}

// A fakeBridge builds nothing. A marked command "reads" one file, named as the
// command.
type fakeBridge struct {
	t       *testing.T
	context string // a directory, for what is local to the client
	fails   func(command string) bool
	summary string
	config  []byte // of every image, none can be resolved without

	frontends map[string]frontend.Frontend

	mu       sync.Mutex
	built    []*pb.Definition
	solved   []frontend.SolveRequest
	warnings []string
	alive    int // proxies that nobody released
}

func (b *fakeBridge) ResolveSourceMetadata(context.Context, *pb.SourceOp, sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	if b.config == nil {
		return nil, errors.New("no network in tests")
	}
	return &sourceresolver.MetaResponse{Image: &sourceresolver.ResolveImageResponse{Config: b.config}}, nil
}

func (b *fakeBridge) Solve(ctx context.Context, req frontend.SolveRequest, sid string) (*frontend.Result, error) {
	if f, ok := b.frontends[req.Frontend]; ok {
		return f.Solve(ctx, b, nil, req.FrontendOpt, req.FrontendInputs, sid, nil)
	}
	if len(req.Definition.GetDef()) == 0 {
		return &frontend.Result{}, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.solved = append(b.solved, req)
	b.alive++
	return &frontend.Result{Ref: &fakeProxy{bridge: b, def: req.Definition}}, nil
}

func (b *fakeBridge) Warn(_ context.Context, d digest.Digest, msg string, _ frontend.WarnOpts) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	require.NoError(b.t, d.Validate())
	b.warnings = append(b.warnings, msg)
	return nil
}

// result evaluates a definition.
func (b *fakeBridge) result(def *pb.Definition) (solver.CachedResult, error) {
	g, err := parse(def)
	if err != nil {
		return nil, err
	}
	if _, err := g.definition(g.head); err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.built = append(b.built, def)
	b.mu.Unlock()
	for _, d := range reachable(g) {
		exec := g.ops[d].GetExec()
		if command := strings.Join(exec.GetMeta().GetArgs(), " "); exec != nil && b.fails != nil && b.fails(command) {
			return nil, fmt.Errorf("process %q did not complete", command)
		}
	}
	return fakeResult{dir: b.files(g)}, nil
}

// files returns the directory that stands for an output.
func (b *fakeBridge) files(g *graph) string {
	op := g.ops[digest.Digest(g.head.Digest)]
	if op.GetSource() != nil {
		return b.context
	}
	for _, m := range op.GetExec().GetMounts() {
		if m.Dest == testDir && m.Output == g.head.Index {
			return b.recording(strings.Join(op.GetExec().Meta.Args, " "))
		}
	}
	return b.t.TempDir()
}

func (b *fakeBridge) recording(command string) string {
	dir := b.t.TempDir()
	p := profile.Profile{}
	if command != "reads nothing" {
		p.Files = []profile.File{{Path: command, Size: 1}}
	}
	encoded, err := p.Encode()
	require.NoError(b.t, err)
	require.NoError(b.t, os.WriteFile(filepath.Join(dir, "profile"), encoded, 0o600))
	require.NoError(b.t, os.WriteFile(filepath.Join(dir, "summary"), []byte(b.summary+"\n"), 0o600))
	return dir
}

// reachable returns what the head of g needs, inputs first.
func reachable(g *graph) []digest.Digest {
	var order []digest.Digest
	var visit func(d digest.Digest)
	visit = func(d digest.Digest) {
		if slices.Contains(order, d) {
			return
		}
		for _, in := range g.ops[d].Inputs {
			visit(digest.Digest(in.Digest))
		}
		order = append(order, d)
	}
	visit(digest.Digest(g.head.Digest))
	return order
}

type fakeProxy struct {
	bridge *fakeBridge
	def    *pb.Definition
	once   sync.Once
}

func (p *fakeProxy) ID() string                 { return fmt.Sprintf("%p", p) }
func (p *fakeProxy) Definition() *pb.Definition { return p.def }
func (p *fakeProxy) Provenance() any            { return nil }

func (p *fakeProxy) Result(context.Context) (solver.CachedResult, error) {
	return p.bridge.result(p.def)
}

func (p *fakeProxy) Release(context.Context) error {
	p.once.Do(func() {
		p.bridge.mu.Lock()
		defer p.bridge.mu.Unlock()
		p.bridge.alive--
	})
	return nil
}

type fakeResult struct {
	solver.CachedResult
	dir string
}

func (r fakeResult) Sys() any { return &worker.WorkerRef{ImmutableRef: fakeRef{dir: r.dir}} }

type fakeRef struct {
	cache.ImmutableRef
	dir string
}

func (r fakeRef) Mount(context.Context, bool, session.Group) (snapshot.Mountable, error) {
	return mountable{r.dir}, nil
}

type mountable struct{ dir string }

func (m mountable) Mount() ([]mount.Mount, func() error, error) {
	return []mount.Mount{{Type: "bind", Source: m.dir}}, func() error { return nil }, nil
}

func (mountable) IdentityMapping() *user.IdentityMapping { return nil }

// A fakeFrontend returns what it is told to.
type fakeFrontend func(ctx context.Context, bridge frontend.FrontendLLBBridge, opt map[string]string) (*frontend.Result, error)

func (f fakeFrontend) Solve(ctx context.Context, bridge frontend.FrontendLLBBridge, _ executor.Executor, opt map[string]string, _ map[string]*pb.Definition, _ string, _ *session.Manager) (*frontend.Result, error) {
	return f(ctx, bridge, opt)
}

type noWorkers struct{}

func (noWorkers) WorkerInfos() []client.WorkerInfo {
	return []client.WorkerInfo{{Platforms: []ocispecs.Platform{amd64}}}
}
func (noWorkers) DefaultCacheManager() (cache.Manager, error) {
	return nil, errors.New("no cache in tests")
}

// dockerfiles is BuildKit's own frontend.
func dockerfiles() frontend.Frontend {
	return forwarder.NewGatewayForwarder(noWorkers{}, dockerfile.Build)
}

// options are those of a daemon on linux/amd64.
func options() Options {
	return Options{
		Requests:    NewRequests("estargz", profile.Default()),
		Marker:      fakeMarker{},
		File:        "profile",
		SummaryFile: "summary",
		Judge: func(summary []byte) Verdict {
			complaint := strings.TrimSpace(string(summary))
			return Verdict{Complaint: complaint, Incomplete: strings.Contains(complaint, "lost")}
		},
		Platforms: func() []ocispecs.Platform { return []ocispecs.Platform{amd64} },
	}
}

// wishing returns a context of a build whose exporter has the attributes.
func wishing(t *testing.T, attrs map[string]string) (context.Context, *wish) {
	r, _, err := profile.ParseRequest(attrs, profile.Default())
	require.NoError(t, err)
	w := &wish{requests: []*profile.Request{r}}
	return context.WithValue(t.Context(), wishKey{}, w), w
}

// paths lists the profile that a result carries, for the request whose attributes
// these are.
func paths(t *testing.T, res *frontend.Result, platform string, attrs ...string) []string {
	r, _, err := profile.ParseRequest(estargz(attrs...), profile.Default())
	require.NoError(t, err)
	p, err := r.Attached(res.Metadata, platform)
	require.NoError(t, err)
	if p == nil {
		return nil
	}
	require.NotEmpty(t, p.Files, "an empty profile")
	var all []string
	for _, f := range p.Files {
		all = append(all, f.Path)
	}
	return all
}
