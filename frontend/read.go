package frontend

import (
	"context"
	"errors"
	"fmt"

	cacheutil "github.com/moby/buildkit/cache/util"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/worker"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// maxFile bounds what is read of a recording: 100,000 files of the image make
// some 15 MB.
const maxFile = 64 << 20

// An opener makes the files of a result readable in a directory, until close.
type opener func(ctx context.Context, res solver.Result, sid string) (dir string, close func() error, err error)

// open mounts a result. One that comes from a remote cache is fetched first,
// with the credentials of the session.
func open(ctx context.Context, res solver.Result, sid string) (string, func() error, error) {
	ref, ok := res.Sys().(*worker.WorkerRef)
	if !ok {
		return "", nil, fmt.Errorf("result is a %T", res.Sys())
	}
	if ref.ImmutableRef == nil {
		return "", nil, errors.New("empty")
	}
	mountable, err := ref.ImmutableRef.Mount(ctx, true, session.NewGroup(sid))
	if err != nil {
		return "", nil, err
	}
	m := snapshot.LocalMounter(mountable)
	dir, err := m.Mount()
	if err != nil {
		return "", nil, errors.Join(err, m.Unmount())
	}
	return dir, m.Unmount, nil
}

// readOutput returns what a recorder left in a directory.
func (o Options) readOutput(ctx context.Context, dir string) (*profile.Profile, Verdict, error) {
	encoded, err := readFile(ctx, dir, o.File)
	if err != nil {
		return nil, Verdict{}, err
	}
	p, err := profile.Decode(encoded)
	if err != nil {
		return nil, Verdict{}, fmt.Errorf("recording: %w", err)
	}
	summary, err := readFile(ctx, dir, o.SummaryFile)
	if err != nil {
		return nil, Verdict{}, err
	}
	return p, o.Judge(summary), nil
}

func readFile(ctx context.Context, dir, name string) ([]byte, error) {
	content, err := cacheutil.ReadFile(ctx, dir, cacheutil.ReadRequest{Filename: name}, maxFile)
	if err != nil {
		return nil, fmt.Errorf("recording: %w", err)
	}
	return content, nil
}
