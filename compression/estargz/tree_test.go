package estargz_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	stock "github.com/containerd/stargz-snapshotter/estargz"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// A tree is what a tar unpacks to: each path with a description of what is
// there. The root's own metadata is left out.
type tree map[string]*string

// treeOf unpacks a tar as containerd does: what is there is removed first, but
// for a directory that another takes the place of, and directories that no
// entry names are made. It fails where unpacking would.
func treeOf(p []byte) (tree, error) {
	t := tree{}
	r := tar.NewReader(bytes.NewReader(p))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return t, nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return nil, err
		}
		contents, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		if err := t.add(h, contents); err != nil {
			return nil, err
		}
	}
}

func (t tree) add(h *tar.Header, contents []byte) error {
	name := estargz.CleanName(h.Name)
	if h.Typeflag == tar.TypeXGlobalHeader || name == "" || h.Typeflag != tar.TypeDir && isReserved(name) {
		return nil
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if t[dir] == nil {
			t[dir] = describe("implied", tar.Header{}, nil)
		}
		if !t.isDir(dir) {
			return fmt.Errorf("%q is under %q", name, dir)
		}
	}
	if h.Typeflag != tar.TypeDir || !t.isDir(name) {
		for other := range t {
			if other == name || strings.HasPrefix(other, name+"/") {
				delete(t, other)
			}
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		t[name] = describe("dir", *h, nil)
	case tar.TypeLink:
		target := t[estargz.CleanName(h.Linkname)]
		if target == nil || t.isDir(estargz.CleanName(h.Linkname)) {
			return fmt.Errorf("%q links to nothing", name)
		}
		t[name] = target
	default:
		t[name] = describe(string(h.Typeflag), *h, contents)
	}
	return nil
}

// isReserved says whether a name is that of a file which every order brings
// along.
func isReserved(name string) bool {
	return name == estargz.TOCName || name == estargz.PrefetchLandmark || name == estargz.NoPrefetchLandmark
}

func (t tree) isDir(name string) bool {
	return t[name] != nil && (strings.HasPrefix(*t[name], "dir") || strings.HasPrefix(*t[name], "implied"))
}

// describe leaves out what is no part of a file: a header may have a target where
// there is no link, and numbers where there is no device.
func describe(kind string, h tar.Header, contents []byte) *string {
	if kind != string(tar.TypeSymlink) {
		h.Linkname = ""
	}
	if kind != string(tar.TypeChar) && kind != string(tar.TypeBlock) {
		h.Devmajor, h.Devminor = 0, 0
	}
	s := fmt.Sprintf("%s %o %d %d %q %d:%d %s %q", kind, h.Mode, h.Uid, h.Gid, h.Linkname, h.Devmajor, h.Devminor, h.ModTime.UTC(), contents)
	return &s
}

// requireSameTree compares what is there, and which names share a file.
func requireSameTree(t testing.TB, want, got tree) {
	t.Helper()
	flat := func(t tree) map[string]string {
		all := map[string]string{}
		for name, s := range t {
			all[name] = *s
		}
		return all
	}
	require.Equal(t, flat(want), flat(got))
	for a := range want {
		for b := range want {
			require.Equal(t, want[a] == want[b], got[a] == got[b], "%q and %q share a file", a, b)
		}
	}
}

// requireShows compares a tree with what a runtime shows that knows the TOC
// alone.
func requireShows(t testing.TB, want tree, r *estargz.Reader) {
	t.Helper()
	shown := 0
	var walk func(name string)
	walk = func(name string) {
		for base := range r.Children(name) {
			name := path.Join(name, base)
			e, _ := r.Lookup(name)
			if e.Type != estargz.TypeDir && isReserved(name) {
				continue
			}
			shown++
			require.NotNil(t, want[name], "%q is not in the tar", name)
			if e.Type == estargz.TypeDir {
				require.True(t, want.isDir(name), "%q is a directory", name)
				walk(name)
				continue
			}
			require.False(t, want.isDir(name), "%q is a %s", name, e.Type)
			var contents []byte
			if e.Type == estargz.TypeReg {
				f, err := r.OpenFile(name)
				require.NoError(t, err)
				contents, err = io.ReadAll(f)
				require.NoError(t, err)
			}
			kind := map[string]byte{estargz.TypeReg: tar.TypeReg, estargz.TypeSymlink: tar.TypeSymlink, estargz.TypeChar: tar.TypeChar, estargz.TypeBlock: tar.TypeBlock, estargz.TypeFifo: tar.TypeFifo}[e.Type]
			h := tar.Header{Mode: e.Mode, Uid: e.UID, Gid: e.GID, Linkname: e.LinkName, Devmajor: int64(e.DevMajor), Devminor: int64(e.DevMinor), ModTime: e.ModTime}
			require.Equal(t, *want[name], *describe(string(kind), h, contents), name)
		}
	}
	walk("")
	require.Equal(t, len(want), shown)
}

func global(records ...string) tarEntry {
	return tarEntry{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": strings.Join(records, " ")}}}
}

// oddTars are such as few tools write. Each is either refused, or shown as it
// unpacks.
var oddTars = map[string][]tarEntry{
	"global header and root":      {global("a"), dir("./"), file("a", "a"), file("b", "b")},
	"global headers":              {global("a"), file("a", "a"), global("b"), file("b", "b"), global("c")},
	"two roots":                   {dir("./"), file("a", "a"), dir("/"), file("b", "b")},
	"root at the end":             {file("b", "b"), dir(".")},
	"file, file":                  {file("a", "1"), file("b", "b"), file("a", "22")},
	"file, empty file":            {file("a", "1"), file("b", "b"), file("a", "")},
	"file, symlink":               {file("a", "1"), file("b", "b"), symlink("a", "b")},
	"file, dir":                   {file("a", "1"), file("b", "b"), dir("a"), file("a/b", "c")},
	"file, link":                  {file("a", "1"), file("b", "b"), link("a", "b")},
	"file, device":                {file("a", "1"), file("b", "b"), device(tar.TypeChar, "a", 1, 3)},
	"symlink, file":               {symlink("a", "b"), file("b", "b"), file("a", "1")},
	"symlink, dir":                {symlink("a", "b"), file("b", "b"), dir("a"), file("a/b", "c")},
	"dir, file":                   {dir("a"), file("b", "b"), file("a", "1")},
	"dir, symlink":                {dir("a"), file("b", "b"), symlink("a", "b")},
	"dir, dir":                    {dir("a"), file("a/b", "b"), dir("a").with(func(h *tar.Header) { h.Mode = 0o700 }), file("b", "b")},
	"dir with files, file":        {dir("a"), file("a/b", "b"), file("a", "1")},
	"dir with files, symlink":     {file("a/b", "b"), symlink("a", "c"), file("c", "c")},
	"link, file":                  {file("a", "1"), link("b", "a"), file("b", "2")},
	"link to a replaced file":     {file("a", "1"), link("b", "a"), file("a", "2")},
	"link to a replaced link":     {file("a", "1"), link("c", "a"), link("b", "c"), file("c", "2")},
	"link to a file that was dir": {dir("a"), file("a", "1"), link("b", "a")},
	"link to a symlink":           {symlink("a", "c"), link("b", "a"), file("c", "c")},
	"link to a link":              {file("a", "1"), link("b", "a"), link("c", "b")},
	"link to a directory":         {dir("a"), link("b", "a")},
	"link to itself":              {file("b", "b"), link("a", "a")},
	"link before its target":      {link("b", "a"), file("a", "1")},
	"link to a landmark":          {file(".prefetch.landmark", "\x0f"), link("b", ".prefetch.landmark"), file("c", "c")},
	"link to a TOC":               {file("stargz.index.json", "{}"), link("b", "stargz.index.json"), file("c", "c")},
	"link as a landmark":          {file("b", "b"), link(".no.prefetch.landmark", "b")},
	"dir as a landmark":           {dir(".prefetch.landmark"), file("b", "b")},
	"file under a landmark":       {file(".prefetch.landmark/b", "b")},
	"missing parents":             {file("x/y/z", "z"), file("b", "b"), dir("x"), file("x/b", "b")},
	"file under a file":           {file("a", "a"), file("a/b", "b")},
	"file under a symlink":        {dir("c"), symlink("a", "c"), file("a/b", "b")},
	"whiteout and file":           {file(".wh.b", ""), file("b", "b")},
	"file and whiteout":           {file("b", "b"), file(".wh.b", "")},
	"whiteout and dir":            {file(".wh.d", ""), dir("d"), file("d/b", "b")},
	"opaque directory":            {dir("d"), file("d/.wh..wh..opq", ""), file("d/b", "b")},
	"dots":                        {file("./x/../b", "1"), file("../c", "2"), file("/d//e", "3"), file("b", "4")},
	"long names":                  {file(strings.Repeat("long/", 60)+"b", "1"), file("b", "b")},
	"nothing":                     {},
}

// TestOddTars: what is written is what unpacks, in its order and in another.
func TestOddTars(t *testing.T) {
	for name, entries := range oddTars {
		p := tarOf(t, entries...)
		t.Run(name, func(t *testing.T) { checkTar(t, p, estargz.Options{Level: 1}) })
		t.Run(name+", shared", func(t *testing.T) { checkTar(t, p, estargz.Options{Level: 1, MinChunkSize: 1000}) })
		t.Run(name+", stock", func(t *testing.T) {
			var b bytes.Buffer
			w := stock.NewWriterLevel(&b, 1)
			if err := w.AppendTarLossLess(bytes.NewReader(p)); err != nil {
				t.Logf("refused by the stock library: %v", err)
				return
			}
			_, err := w.Close()
			require.NoError(t, err)
			if r, err := estargz.Open(bytes.NewReader(b.Bytes()), int64(b.Len()), estargz.OpenOptions{}); err == nil {
				checkOrder(t, p, r)
			}
		})
	}
}

// checkTar writes a tar, if it is not refused, and compares.
func checkTar(t testing.TB, p []byte, opts estargz.Options) {
	var b bytes.Buffer
	if _, err := estargz.Write(context.Background(), &b, bytes.NewReader(p), opts); err != nil {
		t.Logf("refused: %v", err)
		return
	}
	r, err := estargz.Open(bytes.NewReader(b.Bytes()), int64(b.Len()), estargz.OpenOptions{})
	require.NoError(t, err, "what was written cannot be opened")
	if want, err := treeOf(p); err == nil {
		requireShows(t, want, r)
	}
	checkOrder(t, p, r)
}

// checkOrder brings the blob of a tar into several orders, if that is not
// refused, and compares.
func checkOrder(t testing.TB, p []byte, r *estargz.Reader) {
	for _, order := range [][]string{{"b"}, {"a/b", "d/b", "x/b"}, {"c", "a", "b"}, {}} {
		var b bytes.Buffer
		if _, err := estargz.Reorder(context.Background(), &b, r, order, estargz.Options{Level: 1}); err != nil {
			t.Logf("not ordered: %v", err)
			return
		}
		ordered, err := estargz.Open(bytes.NewReader(b.Bytes()), int64(b.Len()), estargz.OpenOptions{})
		require.NoError(t, err, "what was ordered cannot be opened")
		unpacked := unpack(t, b.Bytes())
		got, err := treeOf(unpacked)
		if want, problem := treeOf(p); problem == nil {
			require.NoError(t, err)
			requireSameTree(t, want, got)
			requireShows(t, want, ordered)
		}
	}
}

// TestReorderRefusesAnotherTOC: what a runtime shows that knows the TOC alone, and
// what unpacks, must not become one another.
func TestReorderRefusesAnotherTOC(t *testing.T) {
	plain, _ := write(t, tarOf(t, file("a", text(1, 1000)), file("b", text(2, 1000)), dir("d")), estargz.Options{})
	r := open(t, plain)
	a, _ := r.Lookup("a")
	b, _ := r.Lookup("b")
	reg := func(name string, size, offset int64) string {
		return fmt.Sprintf(`{"name":%q,"type":"reg","size":%d,"offset":%d}`, name, size, offset)
	}
	const d = `{"name":"d","type":"dir"}`
	for name, c := range map[string]struct {
		entries []string
		want    string
	}{
		"the same":               {[]string{reg("a", 1000, a.Offset), reg("b", 1000, b.Offset), d}, ""},
		"another order":          {[]string{d, reg("a", 1000, a.Offset), reg("b", 1000, b.Offset)}, ""},
		"a file more":            {[]string{reg("a", 1000, a.Offset), reg("b", 1000, b.Offset), d, `{"name":"e","type":"dir"}`}, `the TOC has "e", the tar has not`},
		"a file less":            {[]string{reg("a", 1000, a.Offset), reg("b", 1000, b.Offset)}, `the tar has "d", the TOC has not`},
		"other contents":         {[]string{reg("b", 1000, a.Offset), reg("a", 1000, b.Offset), d}, "by the TOC"},
		"another type":           {[]string{reg("a", 1000, a.Offset), reg("b", 1000, b.Offset), `{"name":"d","type":"symlink","linkName":"a"}`}, `"d" is a dir of 0 bytes in the tar, a symlink of 0 in the TOC`},
		"another size":           {[]string{reg("a", 999, a.Offset), reg("b", 1000, b.Offset), d}, `"a" is a reg of 1000 bytes in the tar, a reg of 999 in the TOC`},
		"headers as contents":    {[]string{reg("a", 1000, a.Offset), reg("b", 1536, b.Offset), d}, `the TOC has "d", the tar has not`},
		"contents where none is": {[]string{reg("e", 512, 0), reg("a", 1000, a.Offset), reg("b", 1000, b.Offset), d}, "the tar has not"},
	} {
		t.Run(name, func(t *testing.T) {
			blob := withTOC(t, plain[:b.MemberEnd()], `{"version":1,"entries":[`+strings.Join(c.entries, ",")+`]}`)
			_, err := estargz.Reorder(context.Background(), io.Discard, open(t, blob), []string{"b"}, estargz.Options{})
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
		})
	}
}

// FuzzOrder writes whatever tar, brings it into other orders, and compares what
// each unpacks to and shows.
func FuzzOrder(f *testing.F) {
	for _, entries := range oddTars {
		f.Add(tarOf(f, entries...), 0, 0)
	}
	f.Add(tarOf(f, file("a", text(1, 3000)), file("b", text(2, 3000)), link("a/b", "b")), 700, 2000)
	f.Fuzz(func(t *testing.T, input []byte, chunkSize, minChunkSize int) {
		checkTar(t, withChecksums(input), estargz.Options{Level: 1, ChunkSize: int64(chunkSize), MinChunkSize: int64(minChunkSize)})
	})
}
