package estargz_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// A tarEntry is one entry of a test tar.
type tarEntry struct {
	tar.Header
	contents []byte
}

func file(name, contents string) tarEntry {
	return tarEntry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(contents))}, []byte(contents)}
}

func dir(name string) tarEntry {
	return tarEntry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}

func symlink(name, target string) tarEntry {
	return tarEntry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func link(name, target string) tarEntry {
	return tarEntry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}}
}

func device(kind byte, name string, major, minor int64) tarEntry {
	return tarEntry{Header: tar.Header{Typeflag: kind, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor}}
}

func (e tarEntry) with(change func(h *tar.Header)) tarEntry {
	change(&e.Header)
	return e
}

func xattr(name, value string) func(h *tar.Header) {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
}

func tarOf(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := writeTar(&b, entries); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeTar(to io.Writer, entries []tarEntry) error {
	w := tar.NewWriter(to)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			return fmt.Errorf("%q: %w", e.Name, err)
		}
		if _, err := w.Write(e.contents); err != nil {
			return fmt.Errorf("%q: %w", e.Name, err)
		}
	}
	return w.Close()
}

// text is n bytes that compress as text does, the same for the same seed.
func text(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = fmt.Appendf(b, "%x ", r.IntN(4096))
	}
	return string(b[:n])
}

// noise is n bytes that do not compress.
func noise(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// ordinary is a layer with a bit of everything. It must not be changed.
var ordinary = sync.OnceValue(func() []byte {
	mtime := time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)
	entries := []tarEntry{
		dir("./"),
		dir("etc/"),
		file("etc/passwd", "root:x:0:0::/root:/bin/sh\n").with(func(h *tar.Header) { h.ModTime = mtime; h.Uname, h.Gname = "root", "root" }),
		file("etc/shadow", "").with(func(h *tar.Header) { h.Mode = 0o600; h.Gid = 42; h.Gname = "shadow" }),
		dir("usr/"), dir("usr/bin/"),
		file("usr/bin/su", text(1, 70_000)).with(func(h *tar.Header) { h.Mode = 0o4755 }),
		file("usr/bin/ping", text(2, 3000)).with(xattr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\xff\x80")),
		link("usr/bin/su2", "usr/bin/su"),
		symlink("bin", "usr/bin"),
		file("usr/bin/large", text(3, 2<<20+17)),
		file("usr/bin/noise", noise(4, 1<<18)),
		file("usr/bin/exact", text(5, 2<<20)),
		device(tar.TypeChar, "dev/null", 1, 3), device(tar.TypeBlock, "dev/sda", 8, 0), device(tar.TypeFifo, "run/fifo", 0, 0),
		file("etc/.wh.gone", ""), file("var/cache/.wh..wh..opq", ""),
		file("usr/share/deep/er/than/its/entries/file", "x"),
	}
	for i := range 400 {
		entries = append(entries, file(fmt.Sprintf("usr/share/doc/%04d", i), text(uint64(i), i%5000)).with(func(h *tar.Header) { h.Uid, h.Uname = i%3, fmt.Sprint("user", i%3) }))
	}
	var b bytes.Buffer
	if err := writeTar(&b, entries); err != nil {
		panic(err)
	}
	return b.Bytes()
})
