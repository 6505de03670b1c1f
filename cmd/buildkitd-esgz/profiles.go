package main

import (
	"encoding/json"
	"fmt"

	bkfrontend "github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/solver/pb"
	bkworker "github.com/moby/buildkit/worker"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/frontend"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/record"
)

// frontends puts the profiling stage behind each frontend. It runs where the
// builds run, on w.
func (p *parts) frontends(stock map[string]bkfrontend.Frontend, w bkworker.Worker) map[string]bkfrontend.Frontend {
	wrapped := make(map[string]bkfrontend.Frontend, len(stock))
	for name, f := range stock {
		wrapped[name] = frontend.New(f, frontend.Options{
			Requests:    p.profiles,
			Marker:      marker{p.marks},
			File:        record.ProfileFile,
			SummaryFile: record.SummaryFile,
			Judge:       judge,
			Platforms:   func() []ocispecs.Platform { return w.Platforms(true) },
			Content:     w.ContentStore(),
		})
	}
	return wrapped
}

// A marker tells the worker what the frontend wants to have recorded.
type marker struct{ marks *record.Marks }

func (m marker) Mark(exec *pb.ExecOp, r frontend.Recording) error {
	return m.marks.Put(exec, record.Options{IgnoreExit: r.Workload, Period: r.Period, Idle: r.Idle, Ready: r.Ready})
}

func (m marker) Output(exec *pb.ExecOp) *pb.Mount {
	_, output := m.marks.Of(exec)
	return output
}

// judge says what the frontend should know of a recording.
func judge(summary []byte) frontend.Verdict {
	var s record.Summary
	if err := json.Unmarshal(summary, &s); err != nil {
		return frontend.Verdict{Incomplete: true, Complaint: fmt.Sprintf("the recording's summary cannot be read: %v", err)}
	}
	v := frontend.Verdict{Incomplete: s.Incomplete(), Began: s.Began}
	switch {
	case s.End == record.EndStart:
		v.Complaint = "the workload could not be started: " + s.Reason
	case v.Incomplete, s.Cut, s.Files == 0, s.End == record.EndExit && s.ExitCode != 0:
		v.Complaint = s.String()
	}
	return v
}
