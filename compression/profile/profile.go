// Package profile is the list of files that a workload read, as plain data: how
// it is encoded, and how several become one. The recorder writes profiles, the
// frontend merges them and the exporter orders layers by them. What a layer is
// this package does not know.
package profile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
)

// A Profile lists what a workload read of the merged root filesystem. Two
// recordings of the same reads encode to the same bytes, whatever the order in
// which threads came first: files stand in the order of their paths. A runtime
// fetches the prioritized files in one request, so that their order among
// themselves gains nothing.
type Profile struct {
	Files []File `json:"files"`
}

// A File is a regular file that was opened, read or executed.
type File struct {
	// Path is clean, without a leading slash.
	Path string `json:"path"`
	// Size is the length of the file in bytes.
	Size int64 `json:"size"`
	// Ranges are the parts that were touched, when the recorder knows them;
	// none means the whole file.
	Ranges []Range `json:"ranges,omitempty"`
}

// A Range is a part of a file, in bytes.
type Range struct {
	Offset int64 `json:"offset"`
	Size   int64 `json:"size"`
}

// Touched returns how many bytes of the file were touched.
func (f File) Touched() int64 {
	if len(f.Ranges) == 0 {
		return f.Size
	}
	var n int64
	for _, r := range f.Ranges {
		n += r.Size
	}
	return n
}

// Merge returns what all profiles list together. A file in several has the
// ranges of all of them.
func Merge(profiles ...*Profile) *Profile {
	files := map[string]File{}
	for _, p := range profiles {
		for _, f := range p.Files {
			f.Path = strings.TrimPrefix(path.Clean("/"+f.Path), "/")
			if known, ok := files[f.Path]; ok {
				f = mergeFiles(known, f)
			}
			f.Ranges = mergeRanges(f.Ranges)
			files[f.Path] = f
		}
	}
	merged := &Profile{Files: []File{}}
	for _, f := range files {
		merged.Files = append(merged.Files, f)
	}
	slices.SortFunc(merged.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return merged
}

func mergeFiles(a, b File) File {
	merged := File{Path: a.Path, Size: max(a.Size, b.Size)}
	if len(a.Ranges) > 0 && len(b.Ranges) > 0 {
		merged.Ranges = slices.Concat(a.Ranges, b.Ranges)
	}
	return merged
}

// mergeRanges sorts ranges and joins those that touch.
func mergeRanges(ranges []Range) []Range {
	sorted := slices.SortedFunc(slices.Values(ranges), func(a, b Range) int {
		if a.Offset < b.Offset {
			return -1
		}
		return 1
	})
	var joined []Range
	for _, r := range sorted {
		if last := len(joined) - 1; last >= 0 && r.Offset <= joined[last].Offset+joined[last].Size {
			joined[last].Size = max(joined[last].Size, r.Offset+r.Size-joined[last].Offset)
			continue
		}
		joined = append(joined, r)
	}
	return joined
}

// Encode returns the profile as JSON, a file to a line.
func (p *Profile) Encode() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("{\"files\":[")
	for i, f := range Merge(p).Files {
		if i > 0 {
			b.WriteByte(',')
		}
		line, err := json.Marshal(f)
		if err != nil {
			return nil, fmt.Errorf("profile: %q: %w", f.Path, err)
		}
		b.WriteByte('\n')
		b.Write(line)
	}
	b.WriteString("\n]}\n")
	return b.Bytes(), nil
}

// Decode reads what Encode wrote.
func Decode(data []byte) (*Profile, error) {
	var p Profile
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	for _, f := range p.Files {
		if err := f.check(); err != nil {
			return nil, fmt.Errorf("profile: %q: %w", f.Path, err)
		}
	}
	return Merge(&p), nil
}

func (f File) check() error {
	if f.Path == "" || f.Size < 0 {
		return fmt.Errorf("a path and a size of %d bytes", f.Size)
	}
	for _, r := range f.Ranges {
		if r.Offset < 0 || r.Size <= 0 || r.Size > f.Size-r.Offset {
			return fmt.Errorf("range of %d bytes from %d in a file of %d", r.Size, r.Offset, f.Size)
		}
	}
	return nil
}
