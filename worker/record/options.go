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

// Env returns the entry of the environment that marks a process.
func (o Options) Env() string {
	data, err := json.Marshal(o)
	if err != nil {
		panic(err) // numbers, a string and a bool always encode
	}
	return EnvName + "=" + string(data)
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

// cutMarker returns the options in env and env without them; no options if the
// process is not marked. The caller's env stays as it is: it belongs to the
// vertex.
func cutMarker(env []string) (*Options, []string, error) {
	isMarker := func(entry string) bool { return strings.HasPrefix(entry, EnvName+"=") }
	i := slices.IndexFunc(env, isMarker)
	if i < 0 {
		return nil, env, nil
	}
	rest := slices.DeleteFunc(slices.Clone(env), isMarker)
	if len(rest) != len(env)-1 {
		return nil, nil, fmt.Errorf("record: %s is set %d times", EnvName, len(env)-len(rest))
	}
	opts, err := parseOptions(strings.TrimPrefix(env[i], EnvName+"="))
	if err != nil {
		return nil, nil, fmt.Errorf("record: %s: %w", EnvName, err)
	}
	return opts, rest, nil
}

// cutOutput returns the mount at OutputDir and the other mounts.
func cutOutput(mounts []executor.Mount) (executor.Mountable, []executor.Mount, error) {
	isOutput := func(m executor.Mount) bool { return path.Clean(m.Dest) == OutputDir }
	i := slices.IndexFunc(mounts, isOutput)
	if i < 0 {
		return nil, nil, fmt.Errorf("record: the process has %s but no mount at %s", EnvName, OutputDir)
	}
	output := mounts[i]
	if output.Readonly || output.Src == nil {
		return nil, nil, errors.New("record: the mount at " + OutputDir + " is not writable")
	}
	return output.Src, slices.DeleteFunc(slices.Clone(mounts), isOutput), nil
}
