package exporter

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/profile"
)

// Defaults stand for the attributes that a build with compression=estargz does not
// give. They are the operator's.
type Defaults struct {
	Profile  profile.Request
	settings settings
	level    string // empty for that of the compression
}

// ParseDefaults returns the defaults that values set. They are called like the
// attributes, without the prefix that is common to ours.
func ParseDefaults(values map[string]string) (Defaults, error) {
	d := Defaults{Profile: profile.Default()}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		set, known := defaults[key]
		if !known {
			return d, fmt.Errorf("%s: no such key; there are %s", key, strings.Join(slices.Sorted(maps.Keys(defaults)), ", "))
		}
		if err := set(&d, prefix+key, values[key]); err != nil {
			return d, fmt.Errorf("%s = %q: %w", key, values[key], err)
		}
	}
	return d, nil
}

// defaults are the keys, each with what sets it. Attribute is the one that a key
// is called after.
var defaults = map[string]func(d *Defaults, attribute, value string) error{
	"profile":         setProfile,
	"profile-period":  setProfile,
	"profile-idle":    setProfile,
	"profile-network": setProfile,
	"chunk-size":      setOwn,
	"min-chunk-size":  setOwn,
	attrLevel:         setLevel,
}

func setProfile(d *Defaults, attribute, value string) error {
	return d.Profile.SetDefault(attribute, value)
}

func setOwn(d *Defaults, attribute, value string) error { return own[attribute](&d.settings, value) }

func setLevel(d *Defaults, _, value string) error {
	level, err := strconv.Atoi(value)
	if err != nil || level < 0 || level > 9 {
		return errLevel
	}
	d.level = value
	return nil
}
