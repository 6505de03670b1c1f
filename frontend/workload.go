package frontend

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

var networks = map[profile.Network]pb.NetMode{
	profile.NoNetwork:      llb.NetModeNone,
	profile.SandboxNetwork: llb.NetModeSandbox,
	profile.HostNetwork:    llb.NetModeHost,
}

// A workload is the command that a container of the image would run.
type workload struct {
	args     []string
	config   ocispecs.ImageConfig
	platform ocispecs.Platform
	network  profile.Network
	mark     mark
}

// newWorkload returns the workload of an image, whose config is JSON.
func newWorkload(config []byte, platform ocispecs.Platform, r *profile.Request, m mark) (*workload, error) {
	var image ocispecs.Image
	if len(config) > 0 {
		if err := json.Unmarshal(config, &image); err != nil {
			return nil, fmt.Errorf("image config: %w", err)
		}
	}
	w := &workload{config: image.Config, platform: platform, network: r.Network, mark: m}
	if w.args = r.Command; w.args == nil {
		w.args = slices.Concat(image.Config.Entrypoint, image.Config.Cmd)
	}
	if len(w.args) == 0 {
		return nil, fmt.Errorf("the image has neither ENTRYPOINT nor CMD: give it one, or estargz-profile-cmd")
	}
	return w, nil
}

// name is what the progress shows.
func (w *workload) name() string {
	return fmt.Sprintf("[profile %s] %s", platforms.Format(w.platform), strings.Join(w.args, " "))
}

// on returns the definition of the profile that the workload leaves when it
// runs on the root filesystem that g builds. It has no mounts, so no secrets
// and no files of the builder, and nobody uses what it writes.
func (w *workload) on(ctx context.Context, g *graph) (*pb.Definition, error) {
	run, err := w.run(ctx, g)
	if err != nil {
		return nil, err
	}
	step := digest.Digest(run.head.Digest)
	r, err := w.mark.steps(run, []digest.Digest{step})
	if err != nil {
		return nil, err
	}
	out := r.output(w.mark, step)
	if out == nil {
		return nil, fmt.Errorf("%s cannot be recorded", w.name())
	}
	return r.to.definition(out)
}

// run returns g with the workload on top.
func (w *workload) run(ctx context.Context, g *graph) (*graph, error) {
	root, err := g.definition(g.head)
	if err != nil {
		return nil, err
	}
	op, err := llb.NewDefinitionOp(root)
	if err != nil {
		return nil, err
	}
	options := append(w.options(), llb.Platform(w.platform), llb.WithCustomName(w.name()))
	if g.ignoresCache() {
		options = append(options, llb.IgnoreCache)
	}
	def, err := llb.NewState(op).Run(options...).Root().Marshal(ctx, llb.Platform(w.platform))
	if err != nil {
		return nil, err
	}
	return parse(def.ToPB())
}

func (w *workload) options() []llb.RunOption {
	options := []llb.RunOption{
		llb.Args(w.args),
		llb.Dir(path.Join("/", w.config.WorkingDir)),
		llb.Network(networks[w.network]),
	}
	if w.config.User != "" {
		options = append(options, llb.User(w.config.User))
	}
	for _, e := range w.config.Env {
		name, value, _ := strings.Cut(e, "=")
		options = append(options, llb.AddEnv(name, value))
	}
	return options
}

// keeping returns the definition of what g builds, which needs the profiles in
// turn. So they are built side by side, and a cache export, which takes along
// what its result needs, takes the profiles as well. The image is the same.
func keeping(ctx context.Context, g *graph, platform ocispecs.Platform, profiles []*pb.Definition) (*pb.Definition, error) {
	root, err := g.definition(g.head)
	if err != nil {
		return nil, err
	}
	inputs := []llb.PassthroughInput{{Output: true}}
	for i, def := range append([]*pb.Definition{root}, profiles...) {
		op, err := llb.NewDefinitionOp(def)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			inputs = append(inputs, llb.PassthroughInput{})
		}
		inputs[i].State = llb.NewState(op)
	}
	options := []llb.ConstraintsOpt{llb.WithCustomName(fmt.Sprintf("[profile %s] keep with the image", platforms.Format(platform)))}
	if g.ignoresCache() {
		options = append(options, llb.IgnoreCache)
	}
	def, err := llb.NewPassthrough("buildkitd-esgz.profile", inputs, options...).Marshal(ctx)
	if err != nil {
		return nil, err
	}
	return def.ToPB(), nil
}
