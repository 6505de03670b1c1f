package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// noise is base64 of random bytes.
func noise(n int, seed uint64) []byte {
	raw := make([]byte, n*3/4+3)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for i := range raw {
		raw[i] = byte(rnd.Uint32())
	}
	return []byte(base64.StdEncoding.EncodeToString(raw))[:n]
}

// A maker makes files below dir until the first error.
type maker struct {
	dir string
	err error
}

func (m *maker) do(f func() error) {
	if m.err == nil {
		m.err = f()
	}
}

func (m *maker) path(name string) string { return filepath.Join(m.dir, name) }

func (m *maker) file(name string, content []byte) {
	m.do(func() error { return os.WriteFile(m.path(name), content, 0o644) })
}

func (m *maker) mkdir(name string) {
	m.do(func() error { return os.MkdirAll(m.path(name), 0o755) })
}

func (m *maker) mode(name string, mode uint32) {
	m.do(func() error { return unix.Chmod(m.path(name), mode) })
}

func (m *maker) owner(name string, uid, gid int) {
	m.do(func() error { return os.Lchown(m.path(name), uid, gid) })
}

func (m *maker) time(name string, t time.Time) {
	m.do(func() error { return os.Chtimes(m.path(name), t, t) })
}

func (m *maker) symlink(target, name string) {
	m.do(func() error { return os.Symlink(target, m.path(name)) })
}

func (m *maker) link(target, name string) {
	m.do(func() error { return os.Link(m.path(target), m.path(name)) })
}

func (m *maker) node(name string, mode uint32, major, minor uint32) {
	m.do(func() error { return unix.Mknod(m.path(name), mode, int(unix.Mkdev(major, minor))) })
}

func (m *maker) xattr(name, attr string, value []byte) {
	m.do(func() error {
		if err := unix.Lsetxattr(m.path(name), attr, value, 0); err != nil {
			return fmt.Errorf("setxattr %s of %s: %w", attr, name, err)
		}
		return nil
	})
}

// remove fails when there is nothing to delete, which would be a mistake here.
func (m *maker) remove(name string) {
	m.do(func() error {
		if _, err := os.Lstat(m.path(name)); err != nil {
			return err
		}
		return os.RemoveAll(m.path(name))
	})
}

func (m *maker) rename(from, to string) {
	m.do(func() error { return os.Rename(m.path(from), m.path(to)) })
}

const chunk = 4 << 20

// settled is the time of all files that need no particular one.
const settled = 1700000000

// settle gives all that was touched since start one time, so that two builds
// have the same files.
func (m *maker) settle(start time.Time) {
	m.do(func() error {
		// From the deepest up: nothing below a directory changes after it.
		var names []string
		err := filepath.WalkDir(m.dir, func(path string, _ fs.DirEntry, err error) error {
			names = append(names, path)
			return err
		})
		if err != nil {
			return err
		}
		for _, name := range slices.Backward(names) {
			if err := settleOne(name, start); err != nil {
				return err
			}
		}
		return nil
	})
}

func settleOne(name string, start time.Time) error {
	info, err := os.Lstat(name)
	if err != nil || info.ModTime().Before(start) || info.ModTime().After(time.Now()) {
		return err
	}
	times := []unix.Timespec{{Sec: settled}, {Sec: settled}}
	return unix.UtimesNanoAt(unix.AT_FDCWD, name, times, unix.AT_SYMLINK_NOFOLLOW)
}

// started is a little early, since file times come from a coarser clock.
func started() time.Time { return time.Now().Add(-100 * time.Millisecond) }

func lower(dir string) error {
	start := started()
	m := &maker{dir: dir}
	m.mkdir(".")
	m.contents()
	m.attributes()
	m.names()
	m.links()
	m.special()
	m.toBeChanged()
	m.settle(start)
	return m.err
}

func (m *maker) contents() {
	m.file("empty", nil)
	m.file("one-byte", []byte("x"))
	m.file("small", []byte("hello\n"))
	m.mkdir("empty-dir")
	m.file("chunk-less-one", noise(chunk-1, 1))
	m.file("chunk", noise(chunk, 2))
	m.file("chunk-and-one", noise(chunk+1, 3))
	m.file("chunks", noise(2*chunk+12345, 4))
	m.file("zeroes", make([]byte, chunk+chunk/2))
	// A hole, data, a hole.
	m.do(func() error {
		f, err := os.Create(m.path("sparse"))
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte("in the middle"), 5<<20)
		return errors.Join(err, f.Truncate(9<<20), f.Close())
	})
}

func (m *maker) attributes() {
	for name, mode := range map[string]uint32{
		"mode-0": 0, "mode-setuid": 0o4755, "mode-setgid": 0o2755, "mode-sticky": 0o1644, "mode-all": 0o7777,
	} {
		m.file(name, []byte(name))
		m.mode(name, mode)
	}
	m.mkdir("dir-setgid")
	m.mode("dir-setgid", 0o2775)
	m.mkdir("dir-sticky")
	m.mode("dir-sticky", 0o1777)
	m.mkdir("dir-mode-0")
	m.mode("dir-mode-0", 0)
	m.file("owned", []byte("owned"))
	m.owner("owned", 1000, 65534)
	// More than the 21 bits of the oldest header.
	m.file("owned-large", []byte("owned"))
	m.owner("owned-large", 3000000, 4000000)
	m.file("xattr", []byte("xattr"))
	m.xattr("xattr", "user.text", []byte("text"))
	m.xattr("xattr", "user.empty", nil)
	m.xattr("xattr", "user.binary", []byte("\x00\xff=\n\xfe\x00"))
	m.xattr("xattr", "user.long", noise(2000, 5))
	m.mkdir("xattr-dir")
	m.xattr("xattr-dir", "user.dir", []byte("dir"))
	m.file("capable", []byte("capable"))
	// Version 2, effective, CAP_NET_BIND_SERVICE.
	m.xattr("capable", "security.capability",
		[]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	for name, seconds := range map[string]int64{
		"time-0": 0, "time-1": 1, "time-before-1970": -86400, "time-2038": 1 << 31, "time-2200": 7258118400,
	} {
		m.file(name, []byte(name))
		m.time(name, time.Unix(seconds, 0))
	}
}

func (m *maker) names() {
	long := strings.Repeat("long-", 50) // 250 bytes
	deep := "deep"
	for range 5 {
		deep = filepath.Join(deep, strings.Repeat("d", 100))
	}
	m.mkdir(deep)
	for _, name := range []string{
		long, deep + "/file", "with space", "with\nnewline", "with\\backslash", "-dash", "..dots", "...",
		"percent%20", "quote'\"", "grüße-漢字", "e\u0301-decomposed", strings.Repeat("ü", 60),
	} {
		m.file(name, []byte(name))
	}
}

func (m *maker) links() {
	m.mkdir("links/below")
	m.file("links/z-first-by-name-last", []byte("linked"))
	m.link("links/z-first-by-name-last", "links/a")
	m.link("links/z-first-by-name-last", "links/below/b")
	m.symlink("a", "links/relative")
	m.symlink("/hard/links/a", "links/absolute")
	m.symlink("nowhere", "links/dangling")
	m.symlink("below", "links/to-dir")
	m.symlink(strings.Repeat("t/", 150), "links/long-target")
	m.owner("links/dangling", 1000, 1000)
}

func (m *maker) special() {
	m.node("fifo", unix.S_IFIFO|0o640, 0, 0)
	m.node("char", unix.S_IFCHR|0o666, 1, 3)
	m.node("block", unix.S_IFBLK|0o660, 7, 300)
}

// toBeChanged makes what upper deletes and replaces.
func (m *maker) toBeChanged() {
	for _, dir := range []string{"deleted-dir/below", "opaque/old-dir", "emptied", "dir-to-file", "dir-to-link", "renamed-dir", "pair", "touched-dir"} {
		m.mkdir("change/" + dir)
	}
	for _, name := range []string{
		"deleted", "deleted-dir/a", "deleted-dir/below/b", "opaque/old", "opaque/old-dir/old", "opaque/replaced",
		"emptied/a", "file-to-dir", "dir-to-file/a", "dir-to-link/a", "appended", "chmodded", "chowned", "touched",
		"xattred", "renamed", "renamed-dir/a", "pair/a", "link-target", "same-content",
	} {
		m.file("change/"+name, []byte("lower "+name))
	}
	m.symlink("touched", "change/link-to-file")
	m.link("change/pair/a", "change/pair/b")
	m.xattr("change/xattred", "user.kept", []byte("kept"))
	m.xattr("change/xattred", "user.dropped", []byte("dropped"))
}

func upper(dir string) error {
	start := started()
	m := &maker{dir: filepath.Join(dir, "change")}
	m.remove("deleted")
	m.remove("deleted-dir")
	// Deleted and made again: what was in it must not shine through.
	m.remove("opaque")
	m.mkdir("opaque")
	m.file("opaque/replaced", []byte("upper"))
	m.file("opaque/new", []byte("new"))
	m.remove("emptied/a")
	m.remove("file-to-dir")
	m.mkdir("file-to-dir")
	m.file("file-to-dir/a", []byte("a"))
	m.remove("dir-to-file")
	m.file("dir-to-file", []byte("now a file"))
	m.remove("dir-to-link")
	m.symlink("opaque", "dir-to-link")
	m.remove("link-to-file")
	m.file("link-to-file", []byte("now a file"))
	m.do(func() error {
		f, err := os.OpenFile(m.path("appended"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(" and more")
		return errors.Join(err, f.Close())
	})
	m.mode("chmodded", 0o600)
	m.owner("chowned", 7, 8)
	m.time("touched", time.Unix(1234567890, 0))
	m.time("touched-dir", time.Unix(1234567890, 0))
	m.do(func() error { return unix.Lremovexattr(m.path("xattred"), "user.dropped") })
	m.xattr("xattred", "user.added", []byte("added"))
	m.rename("renamed", "has-new-name")
	// An overlay refuses to rename a directory of a lower layer, so do what mv does.
	m.mkdir("dir-has-new-name")
	m.rename("renamed-dir/a", "dir-has-new-name/a")
	m.remove("renamed-dir")
	m.remove("pair/a")
	m.link("link-target", "linked-from-above")
	m.remove("same-content")
	m.file("same-content", []byte("lower same-content"))
	m.settle(start)
	return m.err
}
