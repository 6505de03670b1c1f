package profile

import (
	"maps"
	"slices"
)

// Attributes are the names that ParseRequest takes out.
func Attributes() []string {
	return append([]string{attrProfile}, slices.Sorted(maps.Keys(attributes))...)
}
