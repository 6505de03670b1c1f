package worker

import (
	"context"

	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/util/network"
)

// proxiedExecutor asks for the policy of a process that reaches the network
// through BuildKit's proxy. BuildKit's own, which its worker uses, is private.
type proxiedExecutor struct {
	executor.Executor
	policy func() (network.ProxyPolicy, error)
}

func (e *proxiedExecutor) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (types.Recorder, error) {
	if process.Meta.Proxy != nil {
		policy, err := e.policy()
		if err != nil {
			return nil, err
		}
		process.Meta.Proxy.Policy = policy
	}
	return e.Executor.Run(ctx, id, root, mounts, process, started)
}
