package store

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	stock "github.com/containerd/stargz-snapshotter/estargz"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

func TestAddFetchesWhatTheTailLacks(t *testing.T) {
	b := blobOf(t, estargz.Options{}, numbered(500, 100)...)
	at, err := estargz.FindTOC(b.data[len(b.data)-estargz.FooterSize:], b.size())
	require.NoError(t, err)
	for name, size := range map[string]int64{"footer alone": int64(estargz.FooterSize), "half of the TOC": (b.size() - at) / 2, "TOC": b.size() - at, "all": b.size()} {
		t.Run(name, func(t *testing.T) {
			f := &fake{data: b.data}
			s := openStore(t)
			require.NoError(t, s.Add(t.Context(), b.key, b.size(), b.data[b.size()-size:], f.Range))
			var want []span
			if missing := b.size() - size - at; missing > 0 {
				want = []span{{at, missing}}
			}
			require.Equal(t, want, f.asked())
			l, err := s.Layer(b.key)
			require.NoError(t, err)
			require.Len(t, walk(t, l), 501)
		})
	}
}

func TestAddRefuses(t *testing.T) {
	b := blobOf(t, estargz.Options{}, numbered(500, 100)...)
	gone := errors.New("registry.example: 404 Not Found")
	away := func(context.Context, int64, int64) (io.ReadCloser, error) { return nil, gone }
	breaks := func(context.Context, int64, int64) (io.ReadCloser, error) { return io.NopCloser(failing{gone}), nil }
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	other := Key{Blob: b.key.Blob, TOC: digest.FromString("other")}
	for name, c := range map[string]struct {
		ctx  context.Context
		key  Key
		tail []byte
		rest Range
		want string
	}{
		"no blob digest":     {t.Context(), Key{TOC: b.key.TOC}, b.data, nil, `blob "": invalid checksum digest format`},
		"no TOC digest":      {t.Context(), Key{Blob: b.key.Blob}, b.data, nil, `TOC "": invalid checksum digest format`},
		"path for a digest":  {t.Context(), Key{Blob: "sha256:../../../x", TOC: b.key.TOC}, b.data, nil, "invalid checksum digest"},
		"another hash":       {t.Context(), Key{Blob: b.key.Blob, TOC: digest.SHA512.FromString("")}, b.data, nil, "want a SHA-256"},
		"another TOC":        {t.Context(), other, b.data, nil, "its digest is " + b.key.TOC.String() + ", want " + other.TOC.String()},
		"short tail":         {t.Context(), b.key, b.data[len(b.data)-20:], nil, "only the last 20 bytes are here"},
		"long tail":          {t.Context(), b.key, append(b.data, b.data...), nil, "bytes from the end of a blob of"},
		"no eStargz":         {t.Context(), b.key, make([]byte, 1000), nil, "footer at"},
		"registry away":      {t.Context(), b.key, b.data[len(b.data)-100:], away, gone.Error()},
		"registry goes away": {t.Context(), b.key, b.data[len(b.data)-100:], breaks, gone.Error()},
		"canceled":           {canceled, b.key, b.data, nil, "context canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			err := s.Add(c.ctx, c.key, b.size(), c.tail, c.rest)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, "store: layer "+c.key.Blob.String())
			if c.rest != nil {
				require.ErrorIs(t, err, gone)
			}
			for _, dir := range []string{s.layersDir, s.tmpDir} {
				list, err := os.ReadDir(dir)
				require.NoError(t, err)
				require.Empty(t, list)
			}
			_, err = s.Layer(c.key)
			require.Error(t, err)
			require.NoError(t, b.addTo(s))
		})
	}
	_, err := openStore(t).Layer(b.key)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// TestAddOnce has many builds that want the same layer.
func TestAddOnce(t *testing.T) {
	b := blobOf(t, estargz.Options{}, numbered(500, 100)...)
	s := openStore(t)
	f := &fake{data: b.data}
	var builds sync.WaitGroup
	layers := make([]*Layer, 30)
	for i := range layers {
		builds.Go(func() {
			require.NoError(t, s.Add(t.Context(), b.key, b.size(), b.data[len(b.data)-100:], f.Range))
			var err error
			layers[i], err = s.Layer(b.key)
			require.NoError(t, err)
		})
	}
	builds.Wait()
	for _, l := range layers {
		require.Same(t, layers[0], l)
	}
	require.EqualValues(t, maxTOCs, s.tocs.Load())
}

// TestSlowTOC has registries that never send a TOC to its end. Those who have it
// make the index of the same layer, and of others.
func TestSlowTOC(t *testing.T) {
	s := openStore(t)
	asked, end := make(chan struct{}), make(chan struct{})
	hangs := func(context.Context, int64, int64) (io.ReadCloser, error) {
		asked <- struct{}{}
		<-end
		return nil, errors.New("no TOC")
	}
	var slow sync.WaitGroup
	blobs := make([]*testBlob, runtime.GOMAXPROCS(0)+1)
	for i := range blobs {
		b := blobOf(t, estargz.Options{}, file("a", text(uint64(i), 100)))
		blobs[i] = b
		slow.Go(func() {
			require.ErrorContains(t, s.Add(t.Context(), b.key, b.size(), b.data[len(b.data)-100:], hangs), "no TOC")
		})
		<-asked
	}
	for _, b := range append(blobs, blobOf(t, estargz.Options{}, file("b", "contents"))) {
		require.NoError(t, b.addTo(s))
	}
	close(end)
	slow.Wait()
}

// TestManyTOCs has no room for another TOC in a file.
func TestManyTOCs(t *testing.T) {
	s := openStore(t)
	b := blobOf(t, estargz.Options{}, numbered(500, 100)...)
	f := &fake{data: b.data}
	s.tocs.Store(1000)
	require.ErrorIs(t, s.Add(t.Context(), b.key, b.size(), b.data[len(b.data)-100:], f.Range), errTOCs)
	require.EqualValues(t, 1000, s.tocs.Load())
	full := errors.New("the disk is full")
	s.checkSpace = func(int64) error { return full }
	require.ErrorIs(t, s.Add(t.Context(), b.key, b.size(), b.data[len(b.data)-100:], f.Range), full)
	require.NoError(t, b.addTo(s), "this one has it in memory")
}

// TestDamagedIndex has an index that the disk did not keep.
func TestDamagedIndex(t *testing.T) {
	b := blobOf(t, estargz.Options{}, numbered(100, 1000)...)
	for name, damage := range map[string]func(p []byte) []byte{
		"a flipped bit": func(p []byte) []byte { p[len(p)/2] ^= 1; return p },
		"cut":           func(p []byte) []byte { return p[:len(p)/2] },
		"empty":         func([]byte) []byte { return nil },
		"zeros":         func(p []byte) []byte { clear(p); return p },
		"other format":  func(p []byte) []byte { p[0]++; return p },
		"other places":  func(p []byte) []byte { p[48]++; return p },
		"huge":          func(p []byte) []byte { copy(p[16:32], bytes.Repeat([]byte{0xff}, 16)); return p },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s, err := Open(root, Options{})
			require.NoError(t, err)
			l := addedTo(t, s, b)
			require.NoError(t, s.Close())
			p, err := os.ReadFile(filepath.Join(l.dir, "index"))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(l.dir, "index"), damage(p), 0o600))
			s, err = Open(root, Options{})
			require.NoError(t, err)
			defer s.Close()
			_, err = s.Layer(b.key)
			require.ErrorContains(t, err, "layer "+b.key.Blob.String()+": the index is damaged")
			require.Len(t, walk(t, addedTo(t, s, b)), 101, "adding it makes it new")
		})
	}
}

// TestOtherVersion has a layer of another version of the program. It is not read,
// and made anew by who adds it.
func TestOtherVersion(t *testing.T) {
	b := blobOf(t, estargz.Options{}, numbered(10, 1000)...)
	root := t.TempDir()
	s, err := Open(root, Options{})
	require.NoError(t, err)
	l := addedTo(t, s, b)
	l.Connect((&fake{data: b.data}).all())
	require.NoError(t, l.Fill(t.Context()))
	require.NoError(t, s.Close())
	name := filepath.Join(l.dir, "index")
	p, err := os.ReadFile(name)
	require.NoError(t, err)
	p[7]++
	require.NoError(t, os.WriteFile(name, p, 0o600))
	s, err = Open(root, Options{})
	require.NoError(t, err)
	defer s.Close()
	_, err = s.Layer(b.key)
	require.ErrorIs(t, err, errVersion)
	require.Zero(t, addedTo(t, s, b).Stats().Present)
}

// TestOtherPlaces opens a layer that was made when other files counted as large.
// Its contents are read where they are.
func TestOtherPlaces(t *testing.T) {
	entries := append(numbered(20, 3000), file("large", text(7, 3<<20)))
	p := tarOf(t, entries...)
	b, want := convert(t, estargz.Options{Level: 1}, p), contentsOf(t, p)
	for _, large := range []int64{1000, 8 << 20} {
		root := t.TempDir()
		s, err := Open(root, Options{large: large})
		require.NoError(t, err)
		l := addedTo(t, s, b)
		l.Connect((&fake{data: b.data}).all())
		_, err = read(l, find(t, l, "003"))
		require.NoError(t, err)
		require.NoError(t, s.Close())

		s, err = Open(root, Options{})
		require.NoError(t, err)
		l, err = s.Layer(b.key)
		require.NoError(t, err)
		l.Connect((&fake{data: b.data}).all())
		require.NoError(t, l.Fill(t.Context()))
		for name, n := range files(l) {
			got, err := read(l, n)
			require.NoError(t, err)
			require.True(t, want[name] == got, name)
			f, ok := l.Backing(n)
			require.Equal(t, l.Attr(n).Size >= large, ok)
			if ok {
				require.NoError(t, f.Close())
			}
		}
		require.NoError(t, s.Close())
	}
}

// TestLayersOfOthers reads what the stock tools write.
func TestLayersOfOthers(t *testing.T) {
	entries := numbered(50, 3000)
	for _, name := range []string{"all types", "modes and owners", "whiteouts", "opaque", "xattrs", "links"} {
		entries = append(entries, under(name, hardTars()[name])...)
	}
	entries = append(entries, file("large", text(1, 4<<20+1)))
	p := tarOf(t, entries...)
	want, contents := unpack(t, p), contentsOf(t, p)
	for name, opts := range map[string][]stock.Option{
		"plain":          nil,
		"prioritized":    {stock.WithPrioritizedFiles([]string{"005", "large"})},
		"shared members": {stock.WithMinChunkSize(50_000)},
		"small chunks":   {stock.WithChunkSize(100_000)},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := stock.Build(io.NewSectionReader(bytes.NewReader(p), 0, int64(len(p))), append(opts, stock.WithCompressionLevel(1))...)
			require.NoError(t, err)
			data, err := io.ReadAll(r)
			require.NoError(t, err)
			require.NoError(t, r.Close())
			b := &testBlob{key: Key{Blob: digest.FromBytes(data), TOC: r.TOCDigest()}, data: data}
			l := addedTo(t, openStore(t), b)
			got := walk(t, l)
			for path, f := range want {
				g := got[path]
				f.Mtime, g.Mtime = f.Mtime.Truncate(1e9), g.Mtime.Truncate(1e9) // stock rounds them
				require.Equal(t, f.Mtime.Unix(), g.Mtime.Unix(), path)
				f.Mtime = g.Mtime
				f.Same, g.Same = "", ""
				require.Equal(t, f, g, path)
			}
			require.Equal(t, len(want), len(got))
			f := &fake{data: data, window: 300_000}
			l.Connect(f.all())
			if name == "prioritized" {
				require.NoError(t, l.Prefetch(t.Context()))
				require.Equal(t, 3, l.Stats().Present, "a file of one chunk and one of two")
			}
			for path, n := range files(l) {
				got, err := read(l, n)
				require.NoError(t, err)
				require.True(t, got == contents[path], path)
			}
		})
	}
}

// under puts entries into a directory.
func under(dir string, entries []tarEntry) []tarEntry {
	for i := range entries {
		e := &entries[i]
		e.Name = path.Join(dir, e.Name)
		if e.Typeflag == tar.TypeLink {
			e.Linkname = path.Join(dir, e.Linkname)
		}
	}
	return entries
}
