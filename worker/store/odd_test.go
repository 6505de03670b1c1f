package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// oddKinds are what can stand under one name, with what has to stand before it.
func oddKinds(name string) map[string][]tarEntry {
	return map[string][]tarEntry{
		"file":     {file(name, "contents of "+name)},
		"other":    {file(name, text(7, 3000))},
		"empty":    {file(name, "")},
		"large":    {file(name, text(8, largeFile+5))},
		"symlink":  {symlink(name, "first")},
		"link":     {link(name, "first")},
		"dir":      {dir(name + "/")},
		"fifo":     {device(tar.TypeFifo, name, 0, 0)},
		"char":     {device(tar.TypeChar, name, 1, 3)},
		"whiteout": {file(".wh."+name, "")},
		"white":    {device(tar.TypeChar, name, 0, 0)},
	}
}

// oddTars are tars in which a later entry has the name of an earlier one: each
// kind after each other kind, with and without a hard link to the earlier one,
// and some more of what no sane builder writes.
func oddTars() map[string][]tarEntry {
	tars := map[string][]tarEntry{
		"crash":              {file("a", "1"), file("b", "2"), symlink("b", "a")},
		"replaced first":     {file("a", "1"), symlink("a", "x"), file("b", "2"), file("c", "3")},
		"all replaced":       {file("a", "1"), file("b", "2"), symlink("a", "x"), symlink("b", "y")},
		"directory replaced": {dir("d/"), file("d", "1"), file("e", "2")},
		"directory again":    {dir("d/"), symlink("d", "e"), dir("d/"), file("d/f", "2")},
		"implied replaced":   {file("d/e/f", "1"), dir("d/").with(owner(1, 2)), dir("d/e/").with(owner(3, 4)), dir("./").with(owner(5, 6))},
		"roots":              {dir("./"), dir("/").with(owner(1, 1)), file("a", "1"), dir("././").with(owner(2, 2))},
		"link chain":         {file("a", "1"), link("b", "a"), link("c", "b"), symlink("a", "c"), file("b", "2")},
		"link back":          {file("a", "1"), link("b", "a"), file("a", "2"), link("a", "b")},
		"opaque again":       {dir("d/"), file("d/.wh..wh..opq", ""), file("d/.wh..wh..opq", ""), file("d/a", "1")},
		"whiteouts again":    {file(".wh.a", ""), file(".wh.a", ""), dir("b/"), file("b/.wh.a", ""), file("b/a", "1"), dir("b/")},
		"landmarks again":    {file("a", "1"), file(".prefetch.landmark", "\x0f"), file("a", "2"), file(".prefetch.landmark", "\x0f"), file("b", "3")},
		"xattrs replaced":    {file("a", "1").with(xattr("user.x", "1")), file("a", "2"), file("b", "3").with(xattr("user.y", "2"))},
		"twins replaced":     {file("a", text(1, 3000)), file("b", text(1, 3000)), symlink("a", "b"), file("c", text(1, 3000))},
		"dots":               {file("./a//b", "1"), file("a/./b", "2"), file("/a/b", "3"), file("x/../y", "4")},
	}
	gone := map[string]bool{"whiteout": true, "white": true}
	for before, first := range oddKinds("x") {
		for after, second := range oddKinds("x") {
			if gone[before] && after == "dir" || !gone[before] && after == "whiteout" {
				continue // refused
			}
			head := append([]tarEntry{file("first", text(1, 100)), file("second", text(2, 100))}, first...)
			tail := append(append([]tarEntry{}, second...), file("y", "behind"), symlink("z", "y"))
			tars[before+" "+after] = append(append([]tarEntry{}, head...), tail...)
			if before != "dir" && !gone[before] {
				tars[before+" linked "+after] = append(append(append([]tarEntry{}, head...), link("l", "x")), tail...)
			}
		}
	}
	return tars
}

// plainBlob is an eStargz blob of the entries, each file's chunks in members of
// their own. Unlike those of estargz.Write it may have hard links to a file that
// a later one replaces, as blobs of other builders have.
func plainBlob(t testing.TB, chunkSize int, entries []tarEntry) *testBlob {
	t.Helper()
	var payload bytes.Buffer
	var toc []estargz.Entry
	z, err := gzip.NewWriterLevel(&payload, gzip.BestSpeed)
	require.NoError(t, err)
	for _, e := range entries {
		toc = append(toc, tocEntry(&e.Header))
		for at := 0; at < len(e.contents); at += chunkSize {
			if at > 0 {
				toc = append(toc, estargz.Entry{Name: e.Name, Type: estargz.TypeChunk})
			}
			chunk := e.contents[at:min(at+chunkSize, len(e.contents))]
			c := &toc[len(toc)-1]
			c.Offset, c.ChunkOffset, c.ChunkSize = int64(payload.Len()), int64(at), int64(len(chunk))
			c.ChunkDigest = digest.FromString(chunk)
			z.Reset(&payload)
			_, err := io.WriteString(z, chunk)
			require.NoError(t, errors.Join(err, z.Close()))
		}
	}
	p, err := json.Marshal(map[string]any{"version": 1, "entries": toc})
	require.NoError(t, err)
	return withTOC(t, payload.Bytes(), bytes.NewReader(p), int64(len(p)))
}

func tocEntry(h *tar.Header) estargz.Entry {
	e := estargz.Entry{
		Name: h.Name, LinkName: h.Linkname, Mode: h.Mode, UID: h.Uid, GID: h.Gid, Size: h.Size,
		DevMajor: int(h.Devmajor), DevMinor: int(h.Devminor), Xattrs: map[string][]byte{},
		Type: map[byte]string{
			tar.TypeReg: estargz.TypeReg, tar.TypeDir: estargz.TypeDir, tar.TypeSymlink: estargz.TypeSymlink, tar.TypeLink: estargz.TypeHardlink,
			tar.TypeChar: estargz.TypeChar, tar.TypeBlock: estargz.TypeBlock, tar.TypeFifo: estargz.TypeFifo,
		}[h.Typeflag],
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			e.Xattrs[name] = []byte(v)
		}
	}
	return e
}

// TestEveryNodeHasAName walks layers by number and by name, and finds the same
// files, those of the unpacked tar.
func TestEveryNodeHasAName(t *testing.T) {
	s := openStore(t)
	for name, entries := range oddTars() {
		t.Run(name, func(t *testing.T) {
			b := plainBlob(t, 10_000, entries)
			l := addedTo(t, s, b)
			l.Connect((&fake{data: b.data, window: 20_000}).all())
			p := tarOf(t, entries...)
			require.Equal(t, unpack(t, p), walk(t, l))
			byNumber(t, l, contentsOf(t, p))
			require.NoError(t, l.Fill(t.Context()))
			require.True(t, l.Complete())
		})
	}
}

// byNumber reads the files of a layer by their numbers.
func byNumber(t testing.TB, l *Layer, want map[string]string) {
	t.Helper()
	named := map[Node]string{Root: ""}
	for name, n := range names(l) {
		named[n] = name
	}
	require.Len(t, named, l.Nodes())
	for n := range Node(l.Nodes()) {
		name, ok := named[n]
		require.True(t, ok, "node %d has no name", n)
		if l.Attr(n).Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		got, err := read(l, n)
		require.NoError(t, err, name)
		require.True(t, want[name] == got, name)
	}
}
