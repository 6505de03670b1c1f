package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/executor"
)

// Defaults of Options. An entrypoint that serves opens its last file for the
// first time within seconds; waiting longer only makes the build longer.
const (
	DefaultPeriod = 10 * time.Second
	DefaultIdle   = 2 * time.Second
	DefaultGrace  = 2 * time.Second
)

// Options say how a process is recorded. Period, Idle, Ready and Grace are
// about workloads only. Durations are nanoseconds in JSON; zero means the
// default and a negative one no limit.
type Options struct {
	// Period stops the workload this long after its start.
	Period time.Duration `json:"period,omitempty"`
	// Idle stops it when no file was read for the first time for this long.
	Idle time.Duration `json:"idle,omitempty"`
	// Ready is a regular expression; a line of stdout or stderr, or the
	// beginning of one, that matches stops the workload.
	Ready string `json:"ready,omitempty"`
	// Grace is the time between SIGTERM and SIGKILL.
	Grace time.Duration `json:"grace,omitempty"`
	// IgnoreExit makes the process a workload.
	IgnoreExit bool `json:"ignoreExit,omitempty"`

	ready *regexp.Regexp
}

// encode is the inverse of parseOptions.
func (o Options) encode() string {
	data, err := json.Marshal(o)
	if err != nil {
		panic(err) // numbers, a string and a bool always encode
	}
	return string(data)
}

func parseOptions(text string) (*Options, error) {
	var o Options
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return nil, err
	}
	if rest := bytes.TrimSpace([]byte(text)[d.InputOffset():]); len(rest) > 0 {
		return nil, fmt.Errorf("%q follows the options", rest)
	}
	if o.Ready != "" {
		var err error
		if o.ready, err = regexp.Compile(o.Ready); err != nil {
			return nil, err
		}
	}
	o.Period = orDefault(o.Period, DefaultPeriod)
	o.Idle = orDefault(o.Idle, DefaultIdle)
	o.Grace = orDefault(o.Grace, DefaultGrace)
	return &o, nil
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// cutOutput returns the mount at OutputDir and the other mounts.
func cutOutput(mounts []executor.Mount) (executor.Mountable, []executor.Mount, error) {
	isOutput := func(m executor.Mount) bool { return path.Clean(m.Dest) == OutputDir }
	i := slices.IndexFunc(mounts, isOutput)
	if i < 0 {
		return nil, nil, errors.New("record: no mount at " + OutputDir)
	}
	rest := slices.DeleteFunc(slices.Clone(mounts), isOutput)
	if len(rest) != len(mounts)-1 || mounts[i].Readonly || mounts[i].Src == nil {
		return nil, nil, errors.New("record: the mount at " + OutputDir + " is not the output")
	}
	return mounts[i].Src, rest, nil
}
