package store

import (
	"archive/tar"
	"fmt"
	"io"
	"path"
	"strings"
	"testing"
	"time"

	"bytes"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// A seen file is all that a path of a layer tells about itself.
type seen struct {
	Attr
	Target string
	Xattrs map[string]string
	Opaque bool
	Same   string // the first path of the same node
}

// walk visits a layer as a reader of directories does.
func walk(t testing.TB, l *Layer) map[string]seen {
	t.Helper()
	all, first := map[string]seen{}, map[Node]string{}
	var visit func(n Node, name string)
	visit = func(n Node, name string) {
		f := seen{Attr: l.Attr(n), Opaque: l.Opaque(n), Target: l.Readlink(n)}
		f.Mtime = f.Mtime.UTC()
		for k, v := range l.Xattrs(n) {
			if f.Xattrs == nil {
				f.Xattrs = map[string]string{}
			}
			f.Xattrs[k] = string(v)
		}
		if first[n] == "" {
			first[n] = name
		}
		f.Same = first[n]
		all[name] = f
		next, last := 0, ""
		for i, e := range l.Entries(n, 0) {
			require.Equal(t, next, i)
			next++
			require.Less(t, last, e.Name)
			last = e.Name
			found, ok := l.Lookup(n, e.Name)
			require.True(t, ok, e.Name)
			require.Equal(t, e.Node, found)
			if l.Attr(e.Node).Mode&unix.S_IFMT == unix.S_IFDIR {
				require.Equal(t, n, l.Parent(e.Node))
			}
			visit(e.Node, path.Join(name, e.Name))
		}
	}
	visit(Root, "/")
	return all
}

// unpack is what a layer must look like: the tar, unpacked.
func unpack(t testing.TB, p []byte) map[string]seen {
	t.Helper()
	all := map[string]*seen{"/": {Attr: Attr{Mode: unix.S_IFDIR | 0o755, Links: 2}}}
	put := func(name string, f *seen) {
		for dir := path.Dir(name); all[dir] == nil; dir = path.Dir(dir) {
			all[dir] = &seen{Attr: Attr{Mode: unix.S_IFDIR | 0o755}}
		}
		all[name] = f
	}
	r := tar.NewReader(bytes.NewReader(p))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		name := path.Clean("/" + h.Name)
		base := path.Base(name)
		f := &seen{Attr: Attr{Mode: uint32(h.Mode), UID: uint32(h.Uid), GID: uint32(h.Gid), Mtime: h.ModTime}}
		for k, v := range h.PAXRecords {
			if k, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				if f.Xattrs == nil {
					f.Xattrs = map[string]string{}
				}
				f.Xattrs[k] = v
			}
		}
		switch h.Typeflag {
		case tar.TypeDir:
			f.Mode |= unix.S_IFDIR
			if old := all[name]; old != nil {
				f.Opaque = old.Opaque
			}
		case tar.TypeReg:
			f.Mode |= unix.S_IFREG
			f.Size = h.Size
		case tar.TypeSymlink:
			f.Mode |= unix.S_IFLNK
			f.Target, f.Size = h.Linkname, int64(len(h.Linkname))
		case tar.TypeChar, tar.TypeBlock:
			f.Mode |= map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK}[h.Typeflag]
			f.Rdev = uint32(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
		case tar.TypeFifo:
			f.Mode |= unix.S_IFIFO
		case tar.TypeLink:
			if strings.HasPrefix(base, whiteout) {
				break
			}
			f = all[path.Clean("/"+h.Linkname)]
			require.NotNil(t, f, h.Linkname)
		}
		switch {
		case base == whiteoutOpaque:
			put(name, f)
			delete(all, name)
			all[path.Dir(name)].Opaque = true
		case strings.HasPrefix(base, whiteout):
			name = path.Join(path.Dir(name), base[len(whiteout):])
			put(name, &seen{Attr: Attr{Mode: unix.S_IFCHR, UID: f.UID, GID: f.GID, Mtime: f.Mtime}})
		default:
			put(name, f)
		}
	}
	for _, name := range []string{estargz.TOCName, estargz.PrefetchLandmark, estargz.NoPrefetchLandmark} {
		delete(all, "/"+name)
	}
	return count(all)
}

// count counts links and finds the first of the paths that share a file.
func count(all map[string]*seen) map[string]seen {
	first := map[*seen]string{}
	for name, f := range all {
		if old, ok := first[f]; !ok || before(name, old) {
			first[f] = name
		}
		if f.Mode&unix.S_IFMT == unix.S_IFDIR {
			f.Links = 2
		} else {
			f.Links = 0
		}
	}
	for name, f := range all {
		if f.Mode&unix.S_IFMT != unix.S_IFDIR {
			f.Links++
		} else if name != "/" {
			all[path.Dir(name)].Links++
		}
	}
	list := map[string]seen{}
	for name, f := range all {
		f.Same = first[f]
		if f.Mtime.IsZero() {
			f.Mtime = time.Unix(0, 0)
		}
		f.Mtime = f.Mtime.UTC()
		list[name] = *f
	}
	return list
}

// before is the order in which walk finds paths.
func before(a, b string) bool {
	return strings.ReplaceAll(a, "/", "\x00") < strings.ReplaceAll(b, "/", "\x00")
}

var mtime = time.Date(2024, 2, 29, 12, 0, 0, 500, time.UTC)

func at(t time.Time) func(h *tar.Header) {
	return func(h *tar.Header) {
		h.ModTime = t
		h.Format = tar.FormatPAX
	}
}

// hardTars are tars with all that a layer can have.
func hardTars() map[string][]tarEntry {
	long := strings.Repeat("long/", 200)
	var many []tarEntry
	for i := range 1000 {
		many = append(many, file(fmt.Sprintf("d%d/%d", i%7, i*7919%1000), text(uint64(i), i%300)).with(owner(i%5, i%3)))
	}
	return map[string][]tarEntry{
		"empty":      {},
		"root alone": {dir("./").with(owner(1, 2)).with(at(mtime))},
		"all types": {
			dir("dev/"), device(tar.TypeChar, "dev/null", 1, 3), device(tar.TypeBlock, "dev/nvme", 259, 1<<19+7), device(tar.TypeFifo, "dev/fifo", 0, 0),
			file("f", "contents").with(at(mtime)), file("empty", ""), symlink("s", "../nowhere"), symlink("absolute", "/f"), link("l", "f"), link("ls", "s"), link("ld", "dev/null"),
		},
		"modes and owners": {
			file("su", "x").with(func(h *tar.Header) { h.Mode = 0o4755 }), dir("tmp/").with(func(h *tar.Header) { h.Mode = 0o1777 }),
			file("nobody", "x").with(owner(65534, 65534)), file("large", "x").with(owner(1<<31+5, 1<<32-2)), file("none", "").with(func(h *tar.Header) { h.Mode = 0 }),
		},
		"times":      {file("epoch", "x").with(at(time.Unix(0, 0))), file("before", "").with(at(time.Unix(-5, 0))), file("after", "").with(at(time.Date(2200, 1, 1, 0, 0, 0, 999, time.UTC)))},
		"implied":    {file("a/b/c/d", "x"), file("a/b/e", "y"), dir("a/").with(owner(3, 4)), link("p/q/r", "a/b/e")},
		"whiteouts":  {file("etc/.wh.gone", ""), file("etc/.wh.there", ""), file("etc/there", "x"), file(".wh.other", ""), file("other", "x"), dir("dir/"), file("dir/.wh.x", ""), file("v/.wh.owned", "").with(owner(7, 8)), file(".wh.contents", "why not")},
		"opaque":     {dir("a/"), file("a/.wh..wh..opq", ""), file("a/b", "x"), file("i/j/.wh..wh..opq", ""), dir("a/").with(owner(1, 1)), file(".wh..wh..opq", "")},
		"twice":      {file("a", "first"), file("a", text(1, 2_000_000)), file("a", "last"), symlink("b", "x"), file("b", "y"), dir("c/"), file("c", "z"), file("d", ""), dir("d/"), file("d/e", ""), link("l", "b"), link("l", "a"), dir("e/"), dir("e/").with(owner(9, 9))},
		"xattrs":     {file("f", "x").with(xattr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\xff\x80")).with(xattr("user.empty", "")), dir("d/").with(xattr("user.d", strings.Repeat("v", 60_000))), file("plain", ""), symlink("s", "f").with(xattr("trusted.s", "1"))},
		"names":      {file(strings.Repeat("n", 255), "x"), file(long+"f", "y"), symlink("t", strings.Repeat("t", 4095)), file("späße/日本語", "z"), file("a b\n\"<&>\\", ""), file("..a", ""), file(".hidden", "")},
		"links":      {file("a", text(1, 5000)), link("b", "a"), link("c", "b"), link("d/e", "/c"), link("d/f", "./d/e")},
		"format":     {file("stargz.index.json", "old"), file(".prefetch.landmark", "\x0f"), file("a", "x"), file("sub/.prefetch.landmark", "seen"), file(".no.prefetch.landmark", "\x0f")},
		"many":       many,
		"large":      {file("a", text(1, 3<<20)), file("b", text(2, 1<<20)), file("c", text(3, 1<<20-1)), file("d", "")},
		"white dirs": {device(tar.TypeChar, "white", 0, 0)},
	}
}

func TestTreeIsTheUnpackedTar(t *testing.T) {
	for name, entries := range hardTars() {
		t.Run(name, func(t *testing.T) {
			p := tarOf(t, entries...)
			want := unpack(t, p)
			for _, opts := range []estargz.Options{{Level: 1}, {Level: 1, ChunkSize: 10_000}, {Level: 1, MinChunkSize: 10_000}} {
				got := walk(t, addedTo(t, openStore(t), convert(t, opts, p)))
				require.Equal(t, len(want), len(got))
				for path, f := range want {
					require.Equal(t, f, got[path], path)
				}
			}
		})
	}
}
