package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// FuzzLayer adds a layer with whatever TOC and payload, and does all with it that
// a build could: it is walked by number and by name, read, read ahead, fetched,
// and put into another order.
func FuzzLayer(f *testing.F) {
	for _, tars := range []map[string][]tarEntry{hardTars(), oddTars()} {
		for _, name := range slices.Sorted(maps.Keys(tars)) {
			p := tarOf(f, tars[name]...)
			if len(p) > 20_000 {
				continue // slow to change
			}
			b, err := tryConvert(estargz.Options{Level: 1, ChunkSize: 1000}, p)
			if err != nil {
				b = plainBlob(f, 1000, tars[name])
			}
			at, err := estargz.FindTOC(b.data, b.size())
			require.NoError(f, err)
			f.Add(tocOf(f, b.data[at:]), b.data[:at])
		}
	}
	f.Add([]byte(`{"entries":[{"name":"a/b/../../..","type":"dir","mode":511},{"name":"x","type":"reg","size":5,"offset":1,"innerOffset":3,"xattrs":{"user.x":"AAA="}},{"name":".wh.y","type":"reg"},{"name":"y","type":"char"}]}`), []byte("payload"))
	f.Add([]byte(`{"entries":[{"name":"d","type":"dir"},{"name":"d","type":"reg"},{"name":"l","type":"hardlink","linkName":"d"},{"name":"d","type":"symlink","linkName":"l"},{"name":".prefetch.landmark","type":"reg","size":1,"offset":5}]}`), []byte("payload"))
	s := fuzzStore(f)
	f.Fuzz(func(t *testing.T, toc, payload []byte) {
		b := withTOC(t, payload, bytes.NewReader(toc), int64(len(toc)))
		if b.addTo(s) != nil {
			return
		}
		defer s.Remove(b.key)
		l, err := s.Layer(b.key)
		require.NoError(t, err)
		contents := checkHostile(t, l, b)
		checkReader(t, s, b, contents)
	})
}

// FuzzTar adds layers of tars, odd ones and others, and compares them with the
// tars, unpacked.
func FuzzTar(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x10\x00\x01\x00\x20\x03\x01\x00\x00"), byte(0))
	f.Add([]byte("\x02\x03\x00\x00\x00\x04\x00\x00\x04\x05\x04\x00\x01\x04\x00\x00\x00\x08\x00\x10"), byte(3))
	f.Add([]byte("\x00\x06\x00\x30\x00\x07\x00\x00\x05\x00\x00\x00\x06\x01\x02\x00\x02\x03\x00\x00\x02\x03\x00\x07"), byte(9))
	s := fuzzStore(f)
	f.Fuzz(func(t *testing.T, script []byte, options byte) {
		entries := scripted(script)
		p := tarOf(t, entries...)
		opts := estargz.Options{Level: 1, ChunkSize: 100 + int64(options&3)*5000, MinChunkSize: int64(options>>2&3) * 200}
		if !checkTar(t, s, plainBlob(t, int(opts.ChunkSize), entries), p) {
			return
		}
		written, err := tryConvert(opts, p)
		if err != nil || !checkTar(t, s, written, p) || contested(entries) {
			return
		}
		var order []string
		for i := int(options >> 4); i < len(entries); i += 3 {
			order = append(order, entries[i].Name)
		}
		if reordered, err := tryReorder(written, order); err == nil {
			require.True(t, checkTar(t, s, reordered, p))
		} else {
			t.Logf("in another order: %v", err)
		}
	})
}

// checkTar compares a layer with the tar it was made from, unpacked. It is false
// of one that is refused.
func checkTar(t *testing.T, s *Store, b *testBlob, p []byte) bool {
	if err := b.addTo(s); err != nil {
		return false
	}
	defer s.Remove(b.key)
	l, err := s.Layer(b.key)
	require.NoError(t, err)
	l.Connect((&fake{data: b.data, window: 2000}).all())
	require.Equal(t, unpack(t, p), walk(t, l))
	byNumber(t, l, contentsOf(t, p))
	require.NoError(t, l.Fill(t.Context()))
	require.True(t, l.Complete())
	return true
}

// contested says whether there are a file and its whiteout, which Reorder may put
// behind it.
func contested(entries []tarEntry) bool {
	all := map[string]bool{}
	for _, e := range entries {
		all[estargz.CleanName(e.Name)] = true
	}
	for name := range all {
		if gone := strings.Replace(name, whiteout, "", 1); gone != name && all[gone] {
			return true
		}
	}
	return false
}

// scripted makes a tar of four bytes for each entry: kind, name, target, size.
func scripted(script []byte) (entries []tarEntry) {
	names := []string{"a", "b", "c", "d", "d/e", "d/e/f", ".wh.a", "d/.wh.e", "d/.wh..wh..opq", ".wh..wh..opq", "./", ".prefetch.landmark", ".no.prefetch.landmark", "stargz.index.json"}
	for ; len(script) >= 4 && len(entries) < 30; script = script[4:] {
		name, target := names[int(script[1])%len(names)], names[int(script[2])%len(names)]
		e := map[byte]tarEntry{
			0: file(name, text(uint64(script[2]), int(script[3])*20)),
			1: dir(strings.TrimSuffix(name, "/") + "/"),
			2: dir(strings.TrimSuffix(name, "/") + "/").with(owner(int(script[2]), int(script[3]))),
			3: symlink(name, target),
			4: link(name, target),
			5: device(tar.TypeChar, name, int64(script[3]), int64(script[2])),
			6: device(tar.TypeFifo, name, 0, 0),
			7: file(name, text(uint64(script[2]), int(script[3]))).with(xattr("user.x", string(rune(script[3])))),
		}[script[0]%8]
		if name != "./" || e.Typeflag == tar.TypeDir {
			entries = append(entries, e)
		}
	}
	return entries
}

// fuzzStore is a store in memory, if there is a place for one.
func fuzzStore(f *testing.F) *Store {
	root, err := os.MkdirTemp("/dev/shm", "fuzz")
	if err != nil {
		root = f.TempDir()
	}
	s, err := Open(root, Options{})
	require.NoError(f, err)
	f.Cleanup(func() { require.NoError(f, errors.Join(s.Close(), os.RemoveAll(root))) })
	return s
}

// tocOf is the JSON of the TOC that the end of a blob has.
func tocOf(t testing.TB, end []byte) []byte {
	z, err := gzip.NewReader(bytes.NewReader(end))
	require.NoError(t, err)
	r := tar.NewReader(z)
	_, err = r.Next()
	require.NoError(t, err)
	p, err := io.ReadAll(r)
	require.NoError(t, err)
	return p
}

func tryConvert(opts estargz.Options, tar []byte) (*testBlob, error) {
	var b bytes.Buffer
	info, err := estargz.Write(context.Background(), &b, bytes.NewReader(tar), opts)
	if err != nil {
		return nil, err
	}
	return &testBlob{key: Key{Blob: info.Digest, TOC: info.TOCDigest}, data: b.Bytes()}, nil
}

func tryReorder(b *testBlob, order []string) (*testBlob, error) {
	r, err := estargz.Open(bytes.NewReader(b.data), b.size(), estargz.OpenOptions{TOCDigest: b.key.TOC})
	if err != nil {
		return nil, err
	}
	var p bytes.Buffer
	info, err := estargz.Reorder(context.Background(), &p, r, order, estargz.Options{})
	if err != nil {
		return nil, err
	}
	return &testBlob{key: Key{Blob: info.Digest, TOC: info.TOCDigest}, data: p.Bytes()}, nil
}

// checkHostile looks at all there is. What can be read must be what the TOC
// promised, and the same whoever reads it. It returns the contents that could be
// read.
func checkHostile(t *testing.T, l *Layer, b *testBlob) map[string]string {
	f := &fake{data: b.data, window: 2000}
	l.Connect(f.all())
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for n := range Node(l.Nodes()) {
		if at := l.Attr(n); at.Mode&unix.S_IFMT == unix.S_IFREG {
			_, _ = l.ReadAt(over, n, make([]byte, min(at.Size, 128<<10)), 0)
		}
	}
	seen := walk(t, l)
	for name := range seen {
		for base := range strings.SplitSeq(strings.TrimPrefix(name, "/"), "/") {
			if base == "." || base == ".." || base == "" && name != "/" || strings.ContainsRune(base, 0) {
				t.Fatalf("unsafe name %q", name)
			}
		}
	}
	_ = l.Prefetch(t.Context())
	contents, named := map[string]string{}, map[Node]string{Root: ""}
	for name, n := range names(l) {
		named[n] = name
		if l.Attr(n).Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		got, err := read(l, n)
		if err != nil {
			continue
		}
		if int64(len(got)) != l.Attr(n).Size {
			t.Fatalf("%q: %d bytes of %d", name, len(got), l.Attr(n).Size)
		}
		contents[name] = got
	}
	for n := range Node(l.Nodes()) {
		name, ok := named[n]
		if !ok {
			t.Fatalf("node %d has no name", n)
		}
		if want, ok := contents[name]; ok {
			got, err := read(l, n)
			require.NoError(t, err)
			require.True(t, want == got, name)
		}
	}
	_ = l.Fill(t.Context())
	for c := range l.index.Chunks {
		if l.present.has(c) && !l.verify(c) {
			t.Fatalf("chunk %d is marked and not right", c)
		}
	}
	if l.Disk() > 64<<20 {
		t.Fatalf("%d bytes on disk", l.Disk())
	}
	return contents
}

// checkReader compares contents with those that the package estargz reads, and
// with those of the blob in another order.
func checkReader(t *testing.T, s *Store, b *testBlob, contents map[string]string) {
	r, err := estargz.Open(bytes.NewReader(b.data), b.size(), estargz.OpenOptions{TOCDigest: b.key.TOC})
	if err != nil {
		return
	}
	var order []string
	twice, seen := false, map[string]bool{}
	for _, e := range r.Entries() {
		if e.Type != estargz.TypeChunk {
			twice = twice || seen[e.Name]
			seen[e.Name] = true
			if len(order) < 3 {
				order = append(order, e.Name)
			}
		}
	}
	reordered, err := tryReorder(b, order)
	if twice {
		return // links to replaced files are another matter
	}
	for name, want := range contents {
		file, err := r.OpenFile(name)
		require.NoError(t, err, name)
		// The layer may have a chunk that is not in the blob from elsewhere.
		if got, err := io.ReadAll(file); err == nil {
			require.True(t, want == string(got), name)
		}
	}
	if err != nil || reordered.addTo(s) != nil {
		return
	}
	defer s.Remove(reordered.key)
	l, err := s.Layer(reordered.key)
	require.NoError(t, err)
	l.Connect((&fake{data: reordered.data, window: 2000}).all())
	for name, n := range files(l) {
		if want, ok := contents[name]; ok {
			got, err := read(l, n)
			require.NoError(t, err)
			require.True(t, want == got, "%s in another order", name)
		}
	}
}
