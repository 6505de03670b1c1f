package profile

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/shlex"
)

// A Request says whose reads an exporter wants first. Its zero value wants
// none.
type Request struct {
	// Entrypoint is the image's ENTRYPOINT and CMD, run once it is built; Run
	// are the RUN steps of the target, Stage those that the stage StageName
	// adds to it.
	Entrypoint, Run, Stage bool
	StageName              string

	// The rest is about Entrypoint. Command stands for ENTRYPOINT and CMD. It
	// is stopped after Period, after Idle without a file read for the first
	// time, or when its output matches Ready.
	Command      []string
	Period, Idle time.Duration
	Ready        string
	Network      Network
}

// A Network is what the entrypoint sees of the network.
type Network string

// The networks that BuildKit has.
const (
	NoNetwork      Network = "none"
	SandboxNetwork Network = "sandbox"
	HostNetwork    Network = "host"
)

// None says whether no reads are wanted.
func (r *Request) None() bool { return !r.Entrypoint && !r.Run && !r.Stage }

const attrProfile = "estargz-profile"

// workloads are the words that estargz-profile joins with a plus.
var workloads = map[string]func(*Request){
	"entrypoint": func(r *Request) { r.Entrypoint = true },
	"run":        func(r *Request) { r.Run = true },
	"stage":      func(r *Request) { r.Stage = true },
}

// An attribute sets a part of the request, and means something only together
// with a workload.
type attribute struct {
	set    func(r *Request, value string) error
	needs  string
	needed func(*Request) bool
}

// attributes are all but estargz-profile itself.
var attributes = map[string]attribute{
	"estargz-profile-stage":   stageAttr(setStage),
	"estargz-profile-cmd":     entrypointAttr(setCommand),
	"estargz-profile-period":  entrypointAttr(duration(func(r *Request) *time.Duration { return &r.Period })),
	"estargz-profile-idle":    entrypointAttr(duration(func(r *Request) *time.Duration { return &r.Idle })),
	"estargz-profile-ready":   entrypointAttr(setReady),
	"estargz-profile-network": entrypointAttr(setNetwork),
}

func stageAttr(set func(*Request, string) error) attribute {
	return attribute{set, "stage", func(r *Request) bool { return r.Stage }}
}

func entrypointAttr(set func(*Request, string) error) attribute {
	return attribute{set, "entrypoint", func(r *Request) bool { return r.Entrypoint }}
}

// Asked says whether attrs speak of profiles at all. Those that do not get the
// default.
func Asked(attrs map[string]string) bool {
	for k := range attrs {
		if k == attrProfile || strings.HasPrefix(k, attrProfile+"-") {
			return true
		}
	}
	return false
}

// Default returns the request of an exporter without attributes about profiles,
// on a daemon whose operator has set nothing else.
func Default() Request {
	return Request{
		Entrypoint: true,
		StageName:  "profile",
		Period:     10 * time.Second,
		Idle:       2 * time.Second,
		Network:    NoNetwork,
	}
}

// SetDefault changes a default by the name of the attribute that it stands for.
// What fits one image only has no default: its command, its stages, its output.
func (r *Request) SetDefault(name, value string) error {
	switch name {
	case attrProfile:
		set := *r
		set.Entrypoint, set.Run = false, false
		err := set.setWorkloads(value)
		if err != nil || set.Stage {
			return fmt.Errorf("give none, entrypoint, run or entrypoint+run; a stage is for a build to ask for")
		}
		*r = set
		return nil
	case "estargz-profile-period", "estargz-profile-idle":
		return attributes[name].set(r, value)
	case "estargz-profile-network":
		if value == string(HostNetwork) {
			return fmt.Errorf("give %s or %s; %s needs the permission of the build that asks for it", NoNetwork, SandboxNetwork, HostNetwork)
		}
		return attributes[name].set(r, value)
	}
	return fmt.Errorf("has no default")
}

// ParseRequest takes what is about profiles out of an exporter's attributes. Those
// without any ask for what the operator has set. As soon as one is given, the
// workload is the one that is given, or the entrypoint: attributes mean the same
// on all daemons. The rest of attrs is the caller's.
func ParseRequest(attrs map[string]string, operator Request) (r *Request, rest map[string]string, err error) {
	r = &operator
	if Asked(attrs) {
		value, given := attrs[attrProfile]
		if !given {
			value = "entrypoint"
		}
		r.Entrypoint, r.Run = false, false
		if err := r.setWorkloads(value); err != nil {
			return nil, nil, fmt.Errorf("%s=%s: %w", attrProfile, value, err)
		}
	}
	rest = maps.Clone(attrs)
	delete(rest, attrProfile)
	for _, k := range slices.Sorted(maps.Keys(attributes)) {
		v, given := attrs[k]
		if !given {
			continue
		}
		delete(rest, k)
		if err := attributes[k].apply(r, v); err != nil {
			return nil, nil, fmt.Errorf("%s=%s: %w", k, v, err)
		}
	}
	return r, rest, nil
}

// setWorkloads adds the workloads that a value names.
func (r *Request) setWorkloads(value string) error {
	if value == "none" {
		return nil
	}
	for word := range strings.SplitSeq(value, "+") {
		set, known := workloads[word]
		if !known {
			return fmt.Errorf("give none, or %s, joined with +", strings.Join(slices.Sorted(maps.Keys(workloads)), ", "))
		}
		set(r)
	}
	return nil
}

func (a attribute) apply(r *Request, value string) error {
	if !a.needed(r) {
		return fmt.Errorf("needs %s among the workloads of %s", a.needs, attrProfile)
	}
	return a.set(r, value)
}

// stageName is what a Dockerfile can name a stage.
var stageName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]*$`)

func setStage(r *Request, value string) error {
	if !stageName.MatchString(value) {
		return fmt.Errorf("give the name of a stage of the Dockerfile: a letter, then letters, digits, dots, dashes and underscores")
	}
	r.StageName = value
	return nil
}

func setCommand(r *Request, value string) error {
	words, err := shlex.Split(value)
	if err != nil {
		return fmt.Errorf("give a command as a shell would read it: %w", err)
	}
	if len(words) == 0 {
		return fmt.Errorf("give a command, or leave the attribute out for ENTRYPOINT and CMD")
	}
	r.Command = words
	return nil
}

// A workload that is stopped sooner reads nothing, and a build that waits
// longer was meant for something else.
const (
	shortest = 100 * time.Millisecond
	longest  = time.Hour
)

func duration(field func(*Request) *time.Duration) func(*Request, string) error {
	return func(r *Request, value string) error {
		d, err := time.ParseDuration(value)
		if err != nil || d < shortest || d > longest {
			return fmt.Errorf("give a time like 10s, from %s to %s", shortest, longest)
		}
		*field(r) = d
		return nil
	}
}

func setReady(r *Request, value string) error {
	if value == "" {
		return fmt.Errorf("give a pattern, or leave the attribute out")
	}
	if _, err := regexp.Compile(value); err != nil {
		return fmt.Errorf("give a regular expression of Go's: %w", err)
	}
	r.Ready = value
	return nil
}

func setNetwork(r *Request, value string) error {
	switch n := Network(value); n {
	case NoNetwork, SandboxNetwork, HostNetwork:
		r.Network = n
		return nil
	default:
		return fmt.Errorf("give %s, %s or %s", NoNetwork, SandboxNetwork, HostNetwork)
	}
}
