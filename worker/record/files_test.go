package record

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProfileOfImage(t *testing.T) {
	top, bottom := t.TempDir(), t.TempDir()
	check(t, os.Mkdir(bottom+"/dir", 0o755))
	for _, name := range []string{top + "/changed", bottom + "/changed", bottom + "/dir/gone", bottom + "/named (deleted)"} {
		check(t, os.WriteFile(name, []byte(name), 0o644))
	}
	check(t, os.Symlink("/etc", top+"/link"))
	im, err := openImage([]string{top, bottom})
	check(t, err)
	defer im.close()
	f := &files{seen: map[string]file{
		"old":                {size: 3},
		"changed":            {size: 1 << 40, changed: true},
		"made":               {changed: true},
		"large":              {size: largeFile},
		"dir":                {changed: true},
		"dir/gone":           {size: 1},
		"dir/gone (deleted)": {size: 1},
		"named (deleted)":    {size: 1},
		"temp (deleted)":     {},
		"link/passwd":        {changed: true},
		"../../etc/passwd":   {changed: true},
	}}
	p := f.profile(-1, im, nil)
	var got []string
	for _, f := range p.Files {
		got = append(got, f.Path)
	}
	if want := []string{"changed", "dir/gone", "named (deleted)", "old"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := find(t, p, "changed").Size, int64(len(top+"/changed")); got != want {
		t.Errorf("the size of a changed file is %d, want %d, the image's", got, want)
	}
}

func TestRangesOfSamples(t *testing.T) {
	touches := newTouches([]uint32{7})
	st := unix.Stat_t{Dev: unix.Mkdev(0, 7), Ino: 1, Size: 3*block + 1}
	pages := uint64(block / os.Getpagesize())
	if got := touches.ranges(st); len(got) != 1 || got[0].Offset != 0 || got[0].Size != block {
		t.Errorf("untouched: %v", got)
	}
	touches.add(inode{7, 1}, 2*pages, 3*pages)
	if got := touches.ranges(st); len(got) != 2 || got[1].Offset != 2*block || got[1].Size != block+1 {
		t.Errorf("the end: %v", got)
	}
	touches.add(inode{7, 2}, pages, pages)
	if got := touches.ranges(st); len(got) != 2 {
		t.Errorf("another inode: %v", got)
	}
	touches.add(inode{7, 1}, pages, pages)
	if got := touches.ranges(st); got != nil {
		t.Errorf("all: %v", got)
	}
	st.Dev = unix.Mkdev(0, 8)
	if got := touches.ranges(st); got != nil {
		t.Errorf("a device that is not watched: %v", got)
	}
}
