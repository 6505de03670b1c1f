package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// nasty names do something to a terminal, a browser or a reader of JSON.
var nasty = []string{
	"\x1b[2J\x1b]0;title\x07", "line\nbreak", "</title><script>alert(1)</script>", `"quoted" & 'quoted'`,
	"\u202egnp.exe", "\u009b2J", "\u2028", "\ufffe", "\u00ad\u200b", "\U000e0001", "\x7f", "日本語", strings.Repeat("long", 500),
}

// Names arrive in no output as they are.
func TestNastyNames(t *testing.T) {
	var nodes []node
	for _, name := range nasty {
		nodes = append(nodes, file("dir/"+name, 10, name), file("copy/"+name, 10, name))
	}
	var first []string
	for _, n := range nodes {
		first = append(first, n.header.Name)
	}
	l := eStargz(t, estargz.Options{}, nodes...).first(t, first...).by(strings.Join(nasty, " "))
	im := inspected(t, l, l, blobOf(l.data[:len(l.data)-1]))
	im.Name = strings.Join(nasty, " ")
	im.Platform = nasty[0]
	im.Layers[0].Error = nasty[0]
	im.Profile = &Profile{Digest: digest.Digest(nasty[0])}
	for _, l := range im.Layers {
		l.Profile = &LayerProfile{}
	}
	for name, write := range map[string]func(io.Writer) error{
		"text": func(w io.Writer) error { return im.WriteText(w, true) },
		"json": im.WriteJSON,
		"svg":  im.WriteSVG,
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			require.NoError(t, write(&b))
			for _, r := range b.String() {
				require.True(t, unicode.IsPrint(r) || r == '\n', "%q", r)
			}
			require.Contains(t, b.String(), "日本語")
			require.NotContains(t, b.String(), "line\nbreak")
			switch name {
			case "svg":
				requireXML(t, b.Bytes())
				require.NotContains(t, b.String(), "<script")
			case "json":
				var again Image
				require.NoError(t, json.Unmarshal(b.Bytes(), &again))
				require.Equal(t, im.Layers[1].Prioritized, again.Layers[1].Prioritized)
			}
		})
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain name.txt": "plain name.txt",
		"a\x1b\n\x7f":    `a\x1b\x0a\x7f`,
		"\u0085\u202e":   `\u0085\u202e`,
		"\U000e0001":     `\U000e0001`,
		"\xff\xfea":      `\xff\xfea`,
		"\ufffd":         `\ufffd`,
		"日本":             "日本",
	} {
		require.Equal(t, want, printable(in))
	}
	require.Equal(t, `"\u009b\udb40\udc01日\u007f"`, string(printableJSON([]byte("\"\u009b\U000e0001日\x7f\""))))
}

func blobOf(data []byte) packed { return annotated(data, digest.FromString("some TOC")) }

// Layers that are not what they are said to be are reported, with the reason, and
// count for nothing.
func TestBadLayers(t *testing.T) {
	good := eStargz(t, estargz.Options{}, file("a", 1000, "a")).first(t, "a")
	footer := good.data[len(good.data)-estargz.FooterSize:]
	pointing := func(at uint64) []byte {
		f := bytes.Clone(footer)
		copy(f[16:], fmt.Sprintf("%016x", at))
		return append(bytes.Clone(good.data[:len(good.data)-estargz.FooterSize]), f...)
	}
	damaged := bytes.Clone(good.data)
	toc, err := estargz.FindTOC(footer, int64(len(damaged)))
	require.NoError(t, err)
	damaged[toc+100] ^= 0xff
	for name, c := range map[string]struct {
		layer packed
		says  string
	}{
		"another TOC":              {blobOf(good.data), "its digest is sha256:"},
		"no TOC":                   {blobOf(gzipped(t, file("a", 1000, "a")).data), "annotated with the digest of a TOC, and has none"},
		"a TOC outside":            {blobOf(pointing(1 << 40)), "outside of the blob"},
		"a TOC that is the footer": {blobOf(pointing(uint64(len(good.data) - 52))), "TOC at"},
		"a file for a TOC":         {blobOf(pointing(0)), `want the file "stargz.index.json"`},
		"a damaged TOC":            {packed{data: damaged, mediaType: good.mediaType, annotations: good.annotations}, "TOC at"},
		"nothing":                  {blobOf(nil), "annotated with the digest of a TOC, and has none"},
	} {
		t.Run(name, func(t *testing.T) {
			im := inspected(t, c.layer, good)
			require.Contains(t, im.Layers[0].Error, c.says)
			require.Zero(t, im.Layers[0].PrefetchBytes)
			require.Empty(t, im.Layers[0].Prioritized)
			require.NotZero(t, im.Layers[1].PrefetchBytes)
			require.ErrorContains(t, im.problems(), "1 of 2 layers")
			var text, svg bytes.Buffer
			require.NoError(t, im.WriteText(&text, false))
			require.Contains(t, text.String(), "layer 1: ")
			require.Contains(t, text.String(), "BAD")
			require.NoError(t, im.WriteSVG(&svg))
			require.Contains(t, svg.String(), "cannot be mounted")
		})
	}
}

// A TOC without an annotation is told, and is no fault.
func TestNoAnnotation(t *testing.T) {
	l := eStargz(t, estargz.Options{}, file("a", 1000, "a"))
	l.annotations = nil
	im := inspected(t, l)
	require.NoError(t, im.problems())
	require.False(t, im.Layers[0].TOC.Verified)
	require.Equal(t, "no annotation", im.Layers[0].tocState())
}

// The landmark of another writer may have no contents, and any offset.
func TestFalseLandmark(t *testing.T) {
	toc := `{"version":1,"entries":[
		{"name":"a","type":"reg","size":3,"offset":10,"chunkDigest":"` + digest.FromString("a").String() + `"},
		{"name":".prefetch.landmark","type":"reg","offset":4611686018427387904},
		{"name":"b","type":"reg","offset":-5}]}`
	im := inspected(t, withTOC(t, toc))
	require.Empty(t, im.Layers[0].Error)
	require.Equal(t, Prefetch, im.Layers[0].Landmark)
	require.Zero(t, im.Layers[0].PrefetchBytes)
	require.NoError(t, im.WriteSVG(io.Discard))
}

// Sizes that add up to more than there is stay in range.
func TestFalseSizes(t *testing.T) {
	var entries []string
	for i := range 100 {
		entries = append(entries, fmt.Sprintf(`{"name":"f%d","type":"reg","size":9000000000000000000}`, i))
	}
	s := newStore(t)
	layout := s.layout(s.image("linux/amd64", withTOC(t, `{"version":1,"entries":[`+strings.Join(entries, ",")+`]}`)))
	im, err := Inspect(t.Context(), layout, Options{})
	require.NoError(t, err)
	require.Contains(t, im.Layers[0].Error, "more than deflate can hold")
	require.Equal(t, int64(1<<63-1), sum(1<<62, 1<<62))
}

// withTOC is a layer without files, but with this TOC.
func withTOC(t *testing.T, toc string) packed {
	t.Helper()
	contents := node{data: []byte(toc)}
	contents.header.Name, contents.header.Typeflag, contents.header.Size = estargz.TOCName, '0', int64(len(toc))
	before, index := gzipped(t).data, gzipped(t, contents).data
	footer := bytes.Clone(eStargz(t, estargz.Options{}).data)
	footer = footer[len(footer)-estargz.FooterSize:]
	copy(footer[16:], fmt.Sprintf("%016x", len(before)))
	return annotated(slices.Concat(before, index, footer), digest.FromString(toc))
}

// Documents that are not what their descriptors say end the report.
func TestBadDocuments(t *testing.T) {
	layer := eStargz(t, estargz.Options{}, file("a", 10, "a"))
	manifest := func(s *store, change func(*ocispecs.Manifest)) ocispecs.Descriptor {
		desc := s.image("linux/amd64", layer)
		var m ocispecs.Manifest
		require.NoError(t, json.Unmarshal(s.blobs[desc.Digest], &m))
		change(&m)
		return s.putJSON(desc.MediaType, m)
	}
	for says, root := range map[string]func(*store) ocispecs.Descriptor{
		"the digest of what was read is": func(s *store) ocispecs.Descriptor {
			desc := s.image("linux/amd64", layer)
			s.blobs[desc.Digest][5] ^= 1
			return desc
		},
		`digest "../../../etc/passwd"`: func(s *store) ocispecs.Descriptor {
			return manifest(s, func(m *ocispecs.Manifest) { m.Layers[0].Digest = "../../../etc/passwd" })
		},
		`digest "sha256:../../etc"`: func(s *store) ocispecs.Descriptor {
			return ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageManifest, Digest: "sha256:../../etc", Size: 5}
		},
		"-1 bytes are not from 0": func(s *store) ocispecs.Descriptor {
			return manifest(s, func(m *ocispecs.Manifest) { m.Layers[0].Size = -1 })
		},
		"9223372036854775807 bytes are not from 0 to 17592186044416": func(s *store) ocispecs.Descriptor {
			return manifest(s, func(m *ocispecs.Manifest) { m.Layers[0].Size = 1<<63 - 1 })
		},
		"are not from 0 to 4194304": func(s *store) ocispecs.Descriptor {
			return s.put(ocispecs.MediaTypeImageManifest, make([]byte, maxDocument+1))
		},
		"has not the": func(s *store) ocispecs.Descriptor {
			desc := s.image("linux/amd64", layer)
			desc.Size++
			return desc
		},
		"1001 layers are more than 1000": func(s *store) ocispecs.Descriptor {
			return manifest(s, func(m *ocispecs.Manifest) {
				for range maxLayers {
					m.Layers = append(m.Layers, m.Layers[0])
				}
			})
		},
		"is not of an image": func(s *store) ocispecs.Descriptor {
			return manifest(s, func(m *ocispecs.Manifest) { m.Config.MediaType = "application/vnd.example" })
		},
		"it says that it is": func(s *store) ocispecs.Descriptor {
			return manifest(s, func(m *ocispecs.Manifest) { m.MediaType = ocispecs.MediaTypeImageIndex })
		},
		"indexes lie more than 4 deep": func(s *store) ocispecs.Descriptor {
			desc := s.image("linux/amd64", layer)
			for range maxDepth + 1 {
				desc = s.index(desc)
			}
			return desc
		},
		"more than 1000 manifests": func(s *store) ocispecs.Descriptor {
			desc := s.image("linux/amd64", layer)
			var half []ocispecs.Descriptor
			for range 501 {
				half = append(half, desc)
			}
			return s.index(s.index(half...), s.index(half...))
		},
		"invalid character": func(s *store) ocispecs.Descriptor { return s.put(ocispecs.MediaTypeImageIndex, []byte("<")) },
	} {
		t.Run(says, func(t *testing.T) {
			s := newStore(t)
			_, err := Inspect(t.Context(), s.layout(root(s)), Options{})
			require.ErrorContains(t, err, says)
		})
	}
}

// A layer that is shorter than its descriptor says has no footer where it should.
func TestShortBlob(t *testing.T) {
	s := newStore(t)
	layer := eStargz(t, estargz.Options{}, file("a", 10, "a"))
	layout := s.layout(s.image("linux/amd64", layer))
	require.NoError(t, os.Truncate(filepath.Join(layout, blobName(digest.FromBytes(layer.data))), 100))
	im, err := Inspect(t.Context(), layout, Options{})
	require.NoError(t, err)
	require.Contains(t, im.Layers[0].Error, "it ends at 100")
}

// A TOC without an end is not read to its end.
func TestEndlessTOC(t *testing.T) {
	read := int64(0)
	s := &sequential{size: 1 << 40, left: 1 << 20, open: func(int64, int64) (io.ReadCloser, error) {
		return io.NopCloser(readerFunc(func(p []byte) (int, error) {
			read += int64(len(p))
			return len(p), nil
		})), nil
	}}
	_, err := io.Copy(io.Discard, io.NewSectionReader(s, 5, 1<<39))
	require.ErrorIs(t, err, errTOCSize)
	require.Less(t, read, int64(2<<20))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Reads at any place give what is there.
func TestSequential(t *testing.T) {
	data := file("", 1000, "x").data
	opened := 0
	s := &sequential{size: 1000, left: 1 << 20, tail: data[900:], open: func(off, n int64) (io.ReadCloser, error) {
		opened++
		require.EqualValues(t, 900-off, n)
		return io.NopCloser(bytes.NewReader(data[off:900])), nil
	}}
	p := make([]byte, 1000)
	for _, at := range [][2]int64{{100, 50}, {150, 50}, {200, 800}, {950, 10}, {0, 1000}} {
		n, err := s.ReadAt(p[:at[1]], at[0])
		require.NoError(t, err)
		require.Equal(t, data[at[0]:at[0]+int64(n)], p[:n])
	}
	require.Equal(t, 2, opened)
	n, err := s.ReadAt(p, 990)
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, 10, n)

	s.open = func(int64, int64) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("short")), nil }
	_, err = s.ReadAt(p[:100], 300)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

// A user who gives up waits no longer.
func TestCancelled(t *testing.T) {
	s, desc := sample(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := serve(t, s, desc)
	_, err := Inspect(ctx, r.image(), Options{})
	require.ErrorIs(t, err, context.Canceled)
}
