package lazy

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/pelletier/go-toml/v2"
)

// Config is the section worker.oci.stargzSnapshotter of buildkitd.toml. Keys
// that the stock snapshotter has too mean the same there.
type Config struct {
	// NoPrefetch leaves the files before the landmark to be fetched when they
	// are read.
	NoPrefetch bool `toml:"noprefetch"`
	// NoBackgroundFetch leaves all others to it.
	NoBackgroundFetch bool `toml:"no_background_fetch"`
	// Connections is how many requests to registries run at once.
	Connections int `toml:"max_concurrency"`
	// BytesInFlight bounds what all of them have asked for, in bytes.
	BytesInFlight int64 `toml:"bytes_in_flight"`
	// Deadline is how long a read waits for a registry that does not answer.
	Deadline config.Duration `toml:"deadline"`
	// Stall is after how long without a byte a connection counts as dead.
	Stall config.Duration `toml:"stall"`
	// MountTimeout is how long a build waits for the index of a layer before
	// it pulls the layer as usual.
	MountTimeout config.Duration `toml:"mount_timeout"`
	Fuse         Fuse            `toml:"fuse"`
}

// Fuse is about the mounts.
type Fuse struct {
	// Passthrough lets the kernel read complete large files by itself. Nil means
	// where it can.
	Passthrough *bool `toml:"passthrough"`
}

// ParseConfig reads the section, which BuildKit leaves untyped. A key that
// means nothing here is an error: what somebody wanted with it will not happen.
func ParseConfig(section map[string]any) (Config, error) {
	var c Config
	text, err := toml.Marshal(section)
	if err != nil {
		return c, err
	}
	err = toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&c)
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		var keys []string
		for _, e := range unknown.Errors {
			keys = append(keys, strings.Join(e.Key(), "."))
		}
		return c, fmt.Errorf("unknown key %s: want noprefetch, no_background_fetch, max_concurrency, bytes_in_flight, deadline, stall, mount_timeout or fuse.passthrough", strings.Join(keys, ", "))
	}
	var wrong *toml.DecodeError
	if errors.As(err, &wrong) {
		return c, fmt.Errorf("%s: %w", strings.Join(wrong.Key(), "."), err)
	}
	if err != nil {
		return c, err
	}
	return c, c.check()
}

func (c Config) check() error {
	switch {
	case c.Connections < 0:
		return fmt.Errorf("max_concurrency %d: want a number of requests, 0 for the default", c.Connections)
	case c.BytesInFlight < 0:
		return fmt.Errorf("bytes_in_flight %d: want bytes, 0 for the default", c.BytesInFlight)
	case c.Deadline.Duration < 0 || c.Stall.Duration < 0 || c.MountTimeout.Duration < 0:
		return errors.New("deadline, stall and mount_timeout: want a duration such as \"2m\"")
	}
	return nil
}

func (c Config) withDefaults() Config {
	c.Deadline.Duration = cmp.Or(c.Deadline.Duration, 2*time.Minute)
	c.MountTimeout.Duration = cmp.Or(c.MountTimeout.Duration, 30*time.Second)
	return c
}

func (c Config) noPassthrough() bool { return c.Fuse.Passthrough != nil && !*c.Fuse.Passthrough }
