package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// withTOC puts a TOC of size bytes behind a payload.
func withTOC(t testing.TB, payload []byte, toc io.Reader, size int64) *testBlob {
	t.Helper()
	var b bytes.Buffer
	b.Write(payload)
	z, err := gzip.NewWriterLevel(&b, gzip.NoCompression)
	require.NoError(t, err)
	w := tar.NewWriter(z)
	require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: estargz.TOCName, Size: size}))
	sum := digest.SHA256.Digester()
	_, err = io.Copy(io.MultiWriter(w, sum.Hash()), toc)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, z.Close())
	b.Write(footer(len(payload)))
	return &testBlob{key: Key{Blob: digest.FromBytes(b.Bytes()), TOC: sum.Digest()}, data: b.Bytes()}
}

func withEntries(t testing.TB, payload []byte, entries string) *testBlob {
	t.Helper()
	toc := `{"version":1,"entries":[` + entries + `]}`
	return withTOC(t, payload, strings.NewReader(toc), int64(len(toc)))
}

// footer is that of a blob with its TOC there.
func footer(toc int) []byte {
	p := []byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff}
	extra := fmt.Appendf([]byte{'S', 'G', 22, 0}, "%016xSTARGZ", toc)
	p = binary.LittleEndian.AppendUint16(p, uint16(len(extra)))
	p = append(append(p, extra...), 1, 0, 0, 0xff, 0xff)
	return append(p, make([]byte, 8)...)
}

func TestHostileTOCsAreRefused(t *testing.T) {
	plain := blobOf(t, estargz.Options{}, file("a", text(1, 1000)))
	at, err := estargz.FindTOC(plain.data, plain.size())
	require.NoError(t, err)
	payload := plain.data[:at]
	sum := digest.FromString("x")
	reg := func(format string, args ...any) string {
		return fmt.Sprintf(`{"name":"a","type":"reg",`+format+`,"chunkDigest":%q}`, append(args, sum)...)
	}
	for name, c := range map[string]struct{ entries, want string }{
		"name too long":          {`{"name":"` + strings.Repeat("x", 256) + `","type":"dir"}`, "256 bytes is longer than Linux takes, 255"},
		"implied name too long":  {`{"name":"` + strings.Repeat("x", 256) + `/y","type":"dir"}`, "256 bytes is longer"},
		"link circle":            {`{"name":"a","type":"hardlink","linkName":"b"},{"name":"b","type":"hardlink","linkName":"a"}`, `hard link to "b", which is not in the layer before it`},
		"link to itself":         {`{"name":"a","type":"reg"},{"name":"a","type":"hardlink","linkName":"./a"}`, "a hard link to itself"},
		"link to a later file":   {`{"name":"a","type":"hardlink","linkName":"b"},{"name":"b","type":"reg"}`, "not in the layer before it"},
		"link outside":           {`{"name":"a","type":"hardlink","linkName":"../../etc/shadow"}`, "not in the layer before it"},
		"link to the root":       {`{"name":"a","type":"hardlink","linkName":"/"}`, "not in the layer before it"},
		"link to a directory":    {`{"name":"d","type":"dir"},{"name":"a","type":"hardlink","linkName":"d"}`, `hard link to the directory "d"`},
		"link through a file":    {`{"name":"f","type":"reg"},{"name":"a","type":"hardlink","linkName":"f/g"}`, "not in the layer before it"},
		"link to a whiteout":     {`{"name":".wh.f","type":"reg"},{"name":"a","type":"hardlink","linkName":"f"}`, "not in the layer before it"},
		"under a file":           {`{"name":"f","type":"reg"},{"name":"f/g","type":"reg"}`, `it lies under "f", which is no directory`},
		"under a symlink":        {`{"name":"s","type":"symlink","linkName":"/etc"},{"name":"s/g","type":"reg"}`, `it lies under "s"`},
		"under a whiteout":       {`{"name":".wh.d/f","type":"reg"}`, `it lies under ".wh.d"`},
		"under the TOC":          {`{"name":"stargz.index.json/f","type":"reg"}`, `it lies under "stargz.index.json"`},
		"landmark of a kind":     {`{"name":".prefetch.landmark","type":"dir"}`, `".prefetch.landmark" is a dir`},
		"file for a directory":   {`{"name":"d/f","type":"reg"},{"name":"d","type":"symlink","linkName":"x"}`, "takes the place of a directory with files in it"},
		"link for a directory":   {`{"name":"f","type":"reg"},{"name":"d/f","type":"reg"},{"name":"d","type":"hardlink","linkName":"f"}`, "takes the place of a directory with files in it"},
		"whiteout of a file":     {`{"name":"f","type":"reg"},{"name":".wh.f","type":"reg"}`, `a whiteout of "f", which is in the same layer`},
		"whiteout of a dir":      {`{"name":"d/f","type":"reg"},{"name":".wh.d","type":"reg"}`, `a whiteout of "d", which is in the same layer`},
		"dir for a whiteout":     {`{"name":".wh.d","type":"reg"},{"name":"d","type":"dir"}`, `takes the place of a whiteout`},
		"under what is gone":     {`{"name":".wh.d","type":"reg"},{"name":"d/f","type":"reg"}`, `it lies under "d", which is no directory`},
		"whiteout of nothing":    {`{"name":".wh.","type":"reg"}`, `a whiteout of ""`},
		"whiteout of the parent": {`{"name":"d/.wh...","type":"reg"}`, `a whiteout of ".."`},
		"whiteout of itself":     {`{"name":"d/.wh..","type":"reg"}`, `a whiteout of "."`},
		"empty symlink":          {`{"name":"s","type":"symlink"}`, `symlink to "", 0 bytes`},
		"long symlink":           {`{"name":"s","type":"symlink","linkName":"` + strings.Repeat("x", 4096) + `"}`, "4096 bytes: want 1 to 4095"},
		"symlink with a zero":    {`{"name":"s","type":"symlink","linkName":"x\u0000"}`, "without a zero"},
		"negative owner":         {`{"name":"f","type":"reg","uid":-1}`, "owner -1:0"},
		"large group":            {`{"name":"f","type":"reg","gid":4294967295}`, "owner 0:4294967295"},
		"negative device":        {`{"name":"f","type":"char","devMajor":-1}`, "device -1:0"},
		"large device":           {`{"name":"f","type":"block","devMinor":1048576}`, "device 0:1048576"},
		"long xattr":             {`{"name":"f","type":"reg","xattrs":{"` + strings.Repeat("x", 256) + `":""}}`, "Linux takes names of 1 to 255"},
		"empty xattr":            {`{"name":"f","type":"reg","xattrs":{"":""}}`, `xattr ""`},
		"large xattr":            {`{"name":"f","type":"reg","xattrs":{"a":"` + strings.Repeat("AAAA", 21846) + `"}}`, "of 65538 bytes"},
		"too many xattrs":        {`{"name":"f","type":"reg","xattrs":{` + strings.TrimSuffix(manyXattrs(10_000), ",") + `}}`, "which Linux does not list"},
		"offset behind the TOC":  {reg(`"size":1,"offset":%d`, at), "before its TOC at"},
		"negative offset":        {reg(`"size":1,"offset":-1`), "offset -1"},
		"offsets out of order":   {reg(`"size":1,"offset":20`) + "," + reg(`"size":1,"offset":10`), "offset 10: want them in the order of the blob, from 20"},
		"negative inner offset":  {reg(`"size":1,"offset":1,"innerOffset":-5`), "inner offset -5"},
		"absurd inner offset":    {reg(`"size":1,"offset":1,"innerOffset":9223372036854775807`), "inner offset 9223372036854775807"},
		"overlapping in member":  {reg(`"size":9,"offset":1,"innerOffset":4`) + "," + reg(`"size":1,"offset":1,"innerOffset":12`), "inner offset 12: want no less than 13"},
		"many in few bytes":      {strings.Repeat(`{"name":"a","type":"fifo"},`, 300_000) + `{"name":"a","type":"fifo"}`, "entries take more than"},
		"deep directories":       {strings.Repeat(`{"name":"a`+strings.Repeat("/d", 2000)+`/f","type":"fifo"},{"name":"b`+strings.Repeat("/d", 2000)+`/f","type":"fifo"},`, 200) + `{"name":"a","type":"dir"}`, "paths up to it have"},
		"absurd size":            {reg(`"size":9223372036854775807,"offset":1`), "a chunk of 9223372036854775807 bytes, more than"},
		"more than deflate has":  {reg(`"size":60000000,"offset":1`), "more than deflate can hold"},
		"gap between chunks":     {reg(`"size":10,"offset":1,"chunkSize":2`) + `,{"type":"chunk","offset":2,"chunkOffset":3}`, "a chunk of 8 bytes at 3, want one at 2 of 10"},
		"overlapping chunks":     {reg(`"size":10,"offset":1,"chunkSize":2`) + `,{"type":"chunk","offset":2,"chunkOffset":1}`, "want one at 2 of 10"},
		"missing chunk":          {reg(`"size":10,"offset":1,"chunkSize":2`), "end at 2 of 10 bytes"},
		"missing chunk before":   {reg(`"size":10,"offset":1,"chunkSize":2`) + `,{"name":"b","type":"reg"}`, "end at 2 of 10 bytes"},
		"chunk past the file":    {reg(`"size":1,"offset":1,"chunkSize":2`), "a chunk of 2 bytes at 0, want one at 0 of 1"},
		"chunk of an empty file": {`{"name":"a","type":"reg"},{"type":"chunk","offset":2}`, "want one at 0 of 0"},
		"chunk behind the last":  {reg(`"size":1,"offset":1`) + `,{"type":"chunk","offset":2,"chunkOffset":1}`, "want one at 1 of 1"},
		"no digest":              {`{"name":"a","type":"reg","size":1,"offset":1}`, "no SHA-256 digest"},
		"digest of another hash": {`{"name":"a","type":"reg","size":1,"offset":1,"chunkDigest":"` + digest.SHA512.FromString("").String() + `"}`, "no SHA-256 digest"},
		"digest of other digits": {`{"name":"a","type":"reg","size":1,"offset":1,"chunkDigest":"sha256:` + strings.Repeat("G", 64) + `"}`, "no SHA-256 digest"},
		"digest of whole alone":  {fmt.Sprintf(`{"name":"a","type":"reg","size":2,"offset":1,"chunkSize":1,"digest":%q}`, sum), "no SHA-256 digest"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			err := withEntries(t, payload, c.entries).addTo(s)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func manyXattrs(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"user.%d":"",`, i)
	}
	return b.String()
}

// TestEscapesStayInside has names that lead out of the layer.
func TestEscapesStayInside(t *testing.T) {
	b := withEntries(t, []byte("x"), `{"name":"../../etc/passwd","type":"reg"},{"name":"/abs/./x/../y","type":"reg"},{"name":"..","type":"dir","uid":5},{"name":"s","type":"symlink","linkName":"../../../etc/shadow"}`)
	all := walk(t, addedTo(t, openStore(t), b))
	var names []string
	for name := range all {
		names = append(names, name)
	}
	require.ElementsMatch(t, []string{"/", "/etc", "/etc/passwd", "/abs", "/abs/y", "/s"}, names)
	require.EqualValues(t, 5, all["/"].UID)
	require.Equal(t, "../../../etc/shadow", all["/s"].Target, "which the kernel follows within the container")
}

// TestHostileMembers has chunks that are where the TOC says, and something
// else.
func TestHostileMembers(t *testing.T) {
	member := func(p []byte, level int) []byte {
		var b bytes.Buffer
		z, err := gzip.NewWriterLevel(&b, level)
		require.NoError(t, err)
		_, err = z.Write(p)
		require.NoError(t, err)
		require.NoError(t, z.Close())
		return b.Bytes()
	}
	bomb := member(make([]byte, 20<<20), gzip.BestCompression)
	small := member([]byte("abc"), gzip.BestSpeed)
	payload := append(append([]byte{}, bomb...), small...)
	entries := func(format string, args ...any) *testBlob {
		return withEntries(t, payload, fmt.Sprintf(format, args...))
	}
	for name, c := range map[string]struct {
		blob *testBlob
		want string
	}{
		"bomb":               {entries(`{"name":"a","type":"reg","size":1000,"offset":0,"chunkDigest":%q}`, digest.FromString("x")), "the digest of the contents"},
		"far":                {entries(`{"name":"a","type":"reg","size":1,"offset":%d,"innerOffset":20000,"chunkDigest":%q}`, len(bomb), digest.FromString("x")), "unexpected EOF"},
		"less than it says":  {entries(`{"name":"a","type":"reg","size":4000,"offset":%d,"chunkDigest":%q}`, len(bomb), digest.FromString("abc")), "unexpected EOF"},
		"inside of a member": {entries(`{"name":"a","type":"reg","size":3,"offset":%d,"chunkDigest":%q}`, len(bomb)+1, digest.FromString("abc")), "invalid header"},
	} {
		t.Run(name, func(t *testing.T) {
			l := addedTo(t, openStore(t), c.blob)
			f := &fake{data: c.blob.data, window: 1 << 20}
			l.Connect(f.all())
			_, err := read(l, find(t, l, "a"))
			require.ErrorContains(t, err, c.want)
			require.Error(t, l.Fill(t.Context()))
		})
	}
}

// TestReplacedFiles has contents of files that later ones took the place of.
// Nobody fetches them.
func TestReplacedFiles(t *testing.T) {
	plain := blobOf(t, estargz.Options{Level: 1}, numbered(4, 5000)...)
	at, err := estargz.FindTOC(plain.data, plain.size())
	require.NoError(t, err)
	l := addedTo(t, openStore(t), plain)
	entry := func(name string, c uint32) string {
		k := l.index.chunk(c)
		return fmt.Sprintf(`{"name":%q,"type":"reg","size":%d,"offset":%d,"chunkDigest":"sha256:%x"},`, name, k.Size, k.Offset, k.Digest)
	}
	b := withEntries(t, plain.data[:at], entry("a", 0)+entry("b", 1)+`{"name":".prefetch.landmark","type":"reg"},`+entry("b", 2)+entry("a", 3)+`{"name":"l","type":"hardlink","linkName":"b"}`)
	l = addedTo(t, openStore(t), b)
	f := &fake{data: b.data, window: 1 << 20}
	l.Connect(f.all())
	require.NoError(t, l.Prefetch(t.Context()))
	require.Empty(t, f.asked())
	require.NoError(t, l.Fill(t.Context()))
	require.Equal(t, 2, l.Stats().Chunks)
	require.Equal(t, l.size, asked(f))
	for name, n := range map[string]uint64{"a": 3, "b": 2, "l": 2} {
		got, err := read(l, find(t, l, name))
		require.NoError(t, err)
		require.Equal(t, text(n, 5000+int(n)), got)
	}
	require.EqualValues(t, 2, l.Attr(find(t, l, "b")).Links)
}

// memory returns the most memory that the process had so far.
func memory() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Sys
}

// TestMillionEntries makes the index of a TOC of a million files.
func TestMillionEntries(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	const n = 1_000_000
	var toc bytes.Buffer
	toc.WriteString(`{"version":1,"entries":[{"name":"empty","type":"reg"}`)
	for i := range n {
		fmt.Fprintf(&toc, `,{"name":"%x/%x/file","type":"reg","size":1,"offset":0,"innerOffset":%d,"chunkDigest":"sha256:%064x"}`, i%1000, i, i, i)
	}
	toc.WriteString("]}")
	b := withTOC(t, make([]byte, 64*n), &toc, int64(toc.Len()))
	s := openStore(t)
	runtime.GC()
	before := memory()
	l := addedTo(t, s, b)
	require.Less(t, memory()-before, uint64(2*maxIndex))
	require.Equal(t, 2*n+1000+2, l.Nodes())
}

// TestIndexOfSmallLayers: what an index may take is in proportion to the layer.
func TestIndexOfSmallLayers(t *testing.T) {
	require.Equal(t, 38<<20, newBuilder(1<<20, largeFile).limit)
	require.Equal(t, maxIndex, newBuilder(1<<40, largeFile).limit)
	toc := strings.Repeat(`{"name":"a","type":"fifo","xattrs":{"user.a":"`+strings.Repeat("AAAA", 20<<10)+`"}},`, 300)
	err := withEntries(t, make([]byte, 1<<20), toc+`{"name":"b","type":"fifo"}`).addTo(openStore(t))
	require.ErrorContains(t, err, "an index of all files takes more than 38 MB")
}

// TestTooManyFiles ends before the memory does.
func TestTooManyFiles(t *testing.T) {
	for name, entry := range map[string]func(i int) *estargz.Entry{
		"deep paths": func(i int) *estargz.Entry {
			return &estargz.Entry{Name: fmt.Sprint(i) + strings.Repeat("/x", 2000), Type: estargz.TypeDir}
		},
		"symlinks": func(i int) *estargz.Entry {
			return &estargz.Entry{Name: fmt.Sprint(i), Type: estargz.TypeSymlink, LinkName: strings.Repeat("x", 4000)}
		},
		"xattrs": func(i int) *estargz.Entry {
			return &estargz.Entry{Name: "same", Type: estargz.TypeFifo, Xattrs: map[string][]byte{"user.x": make([]byte, 64<<10)}}
		},
		"long names": func(i int) *estargz.Entry {
			return &estargz.Entry{Name: fmt.Sprintf("%0255d", i), Type: estargz.TypeFifo}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBuilder(1000, largeFile)
			b.limit = 24 << 20
			var err error
			for i := 0; err == nil; i++ {
				err = b.add(entry(i))
			}
			require.ErrorContains(t, err, "an index of all files takes more than 24 MB")
			require.Less(t, cap(b.nodes)*64+cap(b.names)*20+cap(b.base)+cap(b.text), 2*b.limit)
		})
	}
}
