package main

import (
	_ "github.com/containerd/containerd/v2/client"
	_ "github.com/containerd/stargz-snapshotter/estargz"
	_ "github.com/docker/go-units"
	_ "github.com/klauspost/compress/flate"
	_ "github.com/moby/buildkit/worker/runc"
	_ "github.com/moby/buildkit/worker/containerd"
	_ "github.com/moby/buildkit/frontend/dockerfile/builder"
	_ "github.com/moby/buildkit/cmd/buildkitd/config"
	_ "github.com/stretchr/testify/require"
	_ "golang.org/x/sync/errgroup"
)
