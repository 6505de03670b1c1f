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
	// Connections is how many requests to one registry run at once.
	Connections int `toml:"max_concurrency"`
	// BytesInFlight bounds what all of them have asked for, in bytes.
	BytesInFlight int64 `toml:"bytes_in_flight"`
	// Deadline is how long a read waits for a registry that does not answer.
	Deadline config.Duration `toml:"deadline"`
	// Stall is after how long without a byte a connection counts as dead.
	Stall config.Duration `toml:"stall"`
	// MountTimeout is how long a build waits for the index of a layer before
	// it pulls the layer as usual, and for its registry before it uses one that
	// is mounted and not all here.
	MountTimeout config.Duration `toml:"mount_timeout"`
	Fuse         Fuse            `toml:"fuse"`
}

// Fuse is about the mounts.
type Fuse struct {
	// Passthrough lets the kernel read complete large files by itself. Nil means
	// where it can.
	Passthrough *bool `toml:"passthrough"`
}

// ParseConfig reads the section, which BuildKit leaves untyped. It returns the
// keys that mean nothing here: the stock snapshotter has some, and a daemon that
// takes its place starts with the same file.
func ParseConfig(section map[string]any) (c Config, ignored []string, err error) {
	text, err := toml.Marshal(section)
	if err != nil {
		return c, nil, err
	}
	// Lenient first: strict, an unknown key hides a wrong value.
	if err := toml.Unmarshal(text, &c); err != nil {
		var wrong *toml.DecodeError
		if errors.As(err, &wrong) {
			err = fmt.Errorf("%s: %w", strings.Join(wrong.Key(), "."), err)
		}
		return c, nil, err
	}
	var unknown *toml.StrictMissingError
	if errors.As(toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&Config{}), &unknown) {
		for _, e := range unknown.Errors {
			ignored = append(ignored, strings.Join(e.Key(), "."))
		}
	}
	return c, ignored, c.check()
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
