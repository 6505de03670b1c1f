package inspect

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

var rewriteGolden = flag.Bool("golden", false, "rewrite testdata/sample.*")

// golden compares with a file in testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *rewriteGolden {
		require.NoError(t, os.WriteFile(name, got, 0o644))
	}
	want, err := os.ReadFile(name)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

// An image with all kinds of layers, in all kinds of output.
func TestGolden(t *testing.T) {
	s, desc := sample(t)
	im, err := Inspect(t.Context(), s.layout(desc), Options{Metadata: metadataOf(t, s, desc)})
	require.NoError(t, err)
	im.Name = "registry.example/app:latest"

	var text, all, asJSON, svg bytes.Buffer
	require.NoError(t, im.WriteText(&text, false))
	require.NoError(t, im.WriteText(&all, true))
	require.NoError(t, im.WriteJSON(&asJSON))
	require.NoError(t, im.WriteSVG(&svg))
	golden(t, "sample.txt", text.Bytes())
	require.Equal(t, text.String(), all.String(), "no list is long enough to be cut")
	golden(t, "sample.json", asJSON.Bytes())
	golden(t, "sample.svg", svg.Bytes())
	requireXML(t, svg.Bytes())

	var again Image
	require.NoError(t, json.Unmarshal(asJSON.Bytes(), &again))
	require.Equal(t, im.Layers[0].Prioritized, again.Layers[0].Prioritized)
}

func requireXML(t *testing.T, text []byte) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(text)); ; {
		_, err := d.Token()
		if err == io.EOF {
			return
		}
		require.NoError(t, err)
	}
}

// Every field of the JSON is explained.
func TestDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../../docs/inspect.md")
	require.NoError(t, err)
	for _, v := range []any{Image{}, Fetched{}, Layer{}, TOC{}, File{}, Profile{}, LayerProfile{}, Duplicate{}, Shadowed{}} {
		typ := reflect.TypeOf(v)
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
			if name != "" {
				require.Contains(t, string(doc), "`"+name+"`", "%s of %s", name, typ.Name())
			}
		}
	}
	for _, value := range []string{string(EStargz), string(ExternalTOC), string(Stargz), string(ZstdChunked), string(Gzip), string(Zstd), string(Tar), string(Other),
		string(Prefetch), string(NoPrefetch), string(NoLandmark)} {
		require.Contains(t, string(doc), "`"+value+"`")
	}
}

func TestPrioritized(t *testing.T) {
	l := eStargz(t, estargz.Options{ChunkSize: 1000}, file("a", 10, "a"), file("b", 2500, "b"), file("c", 0, ""), dir("d"), file("d/e", 20, "e"))
	im := inspected(t, l.first(t, "d/e", "c", "b"), l.first(t), l)

	got := im.Layers[0]
	var names []string
	for _, f := range got.Prioritized {
		names = append(names, f.Path)
	}
	require.Equal(t, []string{"d/e", "c", "b"}, names)
	require.EqualValues(t, 2520, got.PrioritizedBytes)
	require.Equal(t, Prefetch, got.Landmark)
	require.Zero(t, got.Prioritized[1].End, "an empty file is nowhere in the blob")
	require.Equal(t, got.PrefetchBytes, got.Prioritized[2].End, "the last chunk of b ends where the landmark begins")
	require.Equal(t, got.Prioritized[0].End, got.Prioritized[2].Offset)
	require.Equal(t, got.PrefetchBytes, im.PrefetchBytes)
	require.Equal(t, 4, got.Files)
	require.EqualValues(t, 2530, got.FileBytes)

	for i, want := range []Landmark{NoPrefetch, NoLandmark} {
		require.Equal(t, want, im.Layers[i+1].Landmark)
		require.Zero(t, im.Layers[i+1].PrefetchBytes)
		require.Empty(t, im.Layers[i+1].Prioritized)
	}
}

// Lists are cut at ten.
func TestAll(t *testing.T) {
	var nodes []node
	var names []string
	for _, c := range "abcdefghijkl" {
		nodes = append(nodes, file(string(c), 10, string(c)))
		names = append(names, string(c))
	}
	l := eStargz(t, estargz.Options{}, nodes...).first(t, names...)
	im := inspected(t, l, l)
	var cut, all bytes.Buffer
	require.NoError(t, im.WriteText(&cut, false))
	require.NoError(t, im.WriteText(&all, true))
	require.Equal(t, 4, strings.Count(cut.String(), "and 2 more; --all lists them"), cut.String())
	require.NotContains(t, all.String(), "more")
	require.Equal(t, strings.Count(cut.String(), "\n")+4*2-4, strings.Count(all.String(), "\n"))
}

func TestDuplicates(t *testing.T) {
	chunks := estargz.Options{ChunkSize: 1000}
	im := inspected(t,
		eStargz(t, chunks, file("one", 3000, "x"), file("in-the-same", 3000, "x"), file("other", 500, "y")),
		gzipped(t, file("unseen", 500, "y")),
		eStargz(t, chunks, file("two", 4000, "x"), file("new", 600, "z"), file("empty", 0, "")))
	require.Equal(t, []Duplicate{
		{Layer: 1, Path: "in-the-same", Bytes: 3000, OfLayer: 1, OfPath: "one"},
		{Layer: 3, Path: "two", Bytes: 3000, OfLayer: 1, OfPath: "one"},
	}, im.Duplicates)
	require.EqualValues(t, 6000, im.DuplicateBytes)
	require.EqualValues(t, 3000, im.Layers[0].DuplicateBytes)
	require.Zero(t, im.Layers[1].DuplicateBytes)
}

func TestShadowed(t *testing.T) {
	lower := []node{
		dir("a"), file("a/replaced", 10, "1"), file("a/kept", 11, "2"), file("a/deleted", 12, "3"),
		dir("gone"), dir("gone/deep"), file("gone/deep/file", 13, "4"),
		dir("emptied"), file("emptied/file", 14, "5"),
		dir("overwritten"), file("overwritten/file", 15, "6"),
		file("link", 16, "7"), hardlink("a/other-name", "link"),
		file("twice", 17, "8"),
		file("both", 18, "9"), hardlink("a/both", "both"),
		symlink("a/symlink", "kept"), file("a/nothing", 0, ""),
		file("becomes-dir", 19, "10"),
	}
	im := inspected(t,
		eStargz(t, estargz.Options{}, lower...).first(t, "a/kept"),
		gzipped(t, file("a/kept", 11, "of an unknown layer")),
		eStargz(t, estargz.Options{}, file("a/replaced", 1, "n"), file("a/.wh.deleted", 0, ""), file(".wh.link", 0, ""),
			file("twice", 20, "n2"), dir("becomes-dir"), file(".wh.both", 0, ""), file("a/.wh.both", 0, "")),
		eStargz(t, estargz.Options{}, file(".wh.gone", 0, ""), dir("emptied"), file("emptied/.wh..wh..opq", 0, ""), file("emptied/new", 5, "n3"),
			file("overwritten", 6, "n4"), file("a/.wh.symlink", 0, ""), file("a/.wh.nothing", 0, ""), file("twice", 21, "n5")).first(t, "twice"))
	require.Equal(t, []Shadowed{
		{Layer: 3, Path: "twice", Bytes: 20, ByLayer: 4},
		{Layer: 1, Path: "becomes-dir", Bytes: 19, ByLayer: 3},
		{Layer: 1, Path: "both", Bytes: 18, ByLayer: 3},
		{Layer: 1, Path: "twice", Bytes: 17, ByLayer: 3},
		{Layer: 1, Path: "overwritten/file", Bytes: 15, ByLayer: 4},
		{Layer: 1, Path: "emptied/file", Bytes: 14, ByLayer: 4},
		{Layer: 1, Path: "gone/deep/file", Bytes: 13, ByLayer: 4},
		{Layer: 1, Path: "a/deleted", Bytes: 12, ByLayer: 3},
		{Layer: 1, Path: "a/replaced", Bytes: 10, ByLayer: 3},
	}, im.Shadowed)
	require.Equal(t, []int{0, 0, 4, 4}, []int{im.Layers[0].Whiteouts, im.Layers[1].Whiteouts, im.Layers[2].Whiteouts, im.Layers[3].Whiteouts})
}

// An opaque root hides all.
func TestOpaqueRoot(t *testing.T) {
	im := inspected(t,
		eStargz(t, estargz.Options{}, dir("a"), file("a/b", 10, "1"), file("c", 11, "2")),
		eStargz(t, estargz.Options{}, file(".wh..wh..opq", 0, ""), file("d", 12, "3")))
	require.EqualValues(t, 21, im.ShadowedBytes)
}
