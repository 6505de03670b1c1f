// Command llbfrontend is a frontend as an image brings it: it puts a file upon
// the image that the option base names, and says nothing of what that image is.
package main

import (
	"context"
	"encoding/json"
	"log"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/gateway/grpcclient"
	"github.com/moby/buildkit/util/appcontext"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	if err := grpcclient.RunFromEnvironment(appcontext.Context(), build); err != nil {
		log.Fatal(err)
	}
}

func build(ctx context.Context, c client.Client) (*client.Result, error) {
	state := llb.Image(c.BuildOpts().Opts["base"]).File(llb.Mkfile("/new", 0o644, []byte("new\n")))
	def, err := state.Marshal(ctx, llb.LinuxAmd64)
	if err != nil {
		return nil, err
	}
	res, err := c.Solve(ctx, client.SolveRequest{Definition: def.ToPB()})
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(ocispecs.Image{
		Platform: ocispecs.Platform{OS: "linux", Architecture: "amd64"},
		Config:   ocispecs.ImageConfig{Cmd: []string{"cat", "/new", "/data/first"}, Env: []string{"PATH=/bin"}},
	})
	if err != nil {
		return nil, err
	}
	res.AddMeta(exptypes.ExporterImageConfigKey, config)
	return res, nil
}
