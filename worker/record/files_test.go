package record

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

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
	f := &files{image: im, seen: map[string]file{
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
	p := f.profile(-1, nil)
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

// A process can make any number of files that take no disk. Of those the daemon
// remembers a bounded number, and no file of the image less.
func TestFilesThatTheProcessMakes(t *testing.T) {
	layer, dir := t.TempDir(), t.TempDir()
	im, err := openImage([]string{layer})
	check(t, err)
	defer im.close()
	f, err := newFiles(im, time.Now())
	check(t, err)
	defer f.close()
	open := func(name string) event {
		fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CREAT, 0o644)
		check(t, err)
		return event{fd: fd, pid: 1, mask: opened}
	}
	e := open(dir + "/made")
	defer unix.Close(e.fd)
	last := dir + "/made"
	for i := range maxMade + 100 {
		name := fmt.Sprintf("%s/%d", dir, i)
		check(t, os.Rename(last, name))
		last = name
		f.add(e)
		if i == maxMade {
			f.newest = time.Time{}
		}
	}
	if len(f.seen) > 0 || len(f.made) != maxMade || !f.newest.IsZero() {
		t.Errorf("of files that the process made %d are kept, and the names of %d; the newest is of %v", len(f.seen), len(f.made), f.newest)
	}
	check(t, os.MkdirAll(layer+dir, 0o755))
	check(t, os.WriteFile(layer+dir+"/changed", nil, 0o644))
	changed := open(dir + "/changed")
	defer unix.Close(changed.fd)
	f.add(changed)
	if _, ok := f.seen[dir[1:]+"/changed"]; !ok || f.newest.IsZero() {
		t.Errorf("a file of the image is missing: %v", f.seen)
	}
}

// The kernel tells no pid of a process that is in none of the daemon's pid
// namespaces.
func TestProcessOfAnotherNamespace(t *testing.T) {
	im, err := openImage([]string{t.TempDir()})
	check(t, err)
	defer im.close()
	w := &watch{events: &events{fd: -1}, seen: make(chan struct{})}
	w.files, err = newFiles(im, time.Now())
	check(t, err)
	defer w.files.close()
	name := t.TempDir() + "/a"
	check(t, os.WriteFile(name, nil, 0o644))
	for range 2 {
		fd, err := unix.Open(name, unix.O_RDONLY, 0)
		check(t, err)
		w.take(event{fd: fd, mask: opened})
	}
	select {
	case <-w.seen:
	default:
		t.Error("the rules do not begin")
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

// A layer that is gone has nothing to do with the kernel's version.
func TestLayerIsGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	if _, err := openImage([]string{dir}); err == nil || err.Error() != dir+": no such file or directory" {
		t.Errorf("opened: %v", err)
	}
}
