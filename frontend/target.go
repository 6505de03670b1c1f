package frontend

import (
	"sync"

	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// A target is what a build makes for one platform. Those of the same result
// share a lock.
type target struct {
	exptypes.Platform
	ref      solver.ResultProxy // nil for an image without files
	original *pb.Definition     // as the frontend made it
	config   []byte
	hasBase  bool // the frontend says what the base image is

	res *frontend.Result
	mu  *sync.Mutex
}

func targetsOf(res *frontend.Result) ([]*target, error) {
	ps, err := exptypes.ParsePlatforms(res.Metadata)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var targets []*target
	for _, p := range ps.Platforms {
		t := &target{
			Platform: p,
			ref:      refOf(res, p.ID),
			config:   exptypes.ParseKey(res.Metadata, exptypes.ExporterImageConfigKey, &p),
			hasBase:  len(exptypes.ParseKey(res.Metadata, exptypes.ExporterImageBaseConfigKey, &p)) > 0,
			res:      res,
			mu:       &mu,
		}
		if t.ref != nil {
			t.original = t.ref.Definition()
		}
		targets = append(targets, t)
	}
	return targets, nil
}

func refOf(res *frontend.Result, platform string) solver.ResultProxy {
	if res == nil {
		return nil
	}
	if res.Refs != nil {
		return res.Refs[platform]
	}
	return res.Ref
}

// replace makes ref the target's, and returns the one it was.
func (t *target) replace(ref solver.ResultProxy) (was solver.ResultProxy) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.res.Refs != nil {
		t.res.Refs[t.ID] = ref
	} else {
		t.res.SetRef(ref)
	}
	was, t.ref = t.ref, ref
	return was
}

// replaceAttestation is replace for an attestation of the target, by its place
// among them.
func (t *target) replaceAttestation(i int, ref solver.ResultProxy) (was solver.ResultProxy) {
	t.mu.Lock()
	defer t.mu.Unlock()
	attestations := t.res.Attestations[t.ID]
	was, attestations[i].Ref = attestations[i].Ref, ref
	return was
}

// attach gives the target the profile that answers a request.
func (t *target) attach(r *profile.Request, p *profile.Profile) error {
	packed, err := p.Pack()
	if err != nil {
		return err
	}
	t.res.AddMeta(r.MetadataKey(t.ID), packed)
	return nil
}
