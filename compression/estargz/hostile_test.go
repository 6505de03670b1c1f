package estargz_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// withTOC puts another TOC behind the payload of a blob.
func withTOC(t testing.TB, payload []byte, toc string) []byte {
	t.Helper()
	var b bytes.Buffer
	b.Write(payload)
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	require.NoError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "stargz.index.json", Size: int64(len(toc))}))
	_, err := io.WriteString(w, toc)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.NoError(t, z.Close())
	b.Write(estargz.FooterBytes(int64(len(payload))))
	return b.Bytes()
}

func TestOpenRefuses(t *testing.T) {
	plain, info := write(t, tarOf(t, file("a", text(1, 1000)), file("b", "b")), estargz.Options{})
	end := len(plain) - estargz.FooterSize
	r := open(t, plain)
	a, _ := r.Lookup("a")
	b, _ := r.Lookup("b")
	payload := plain[:b.MemberEnd()]
	entries := func(list string) []byte { return withTOC(t, payload, `{"version":1,"entries":[`+list+`]}`) }
	reg := func(format string, args ...any) []byte {
		return entries(fmt.Sprintf(`{"name":"a","type":"reg",`+format+`}`, args...))
	}
	for name, c := range map[string]struct {
		blob []byte
		want string
	}{
		"nothing":                   {nil, "smaller than a footer"},
		"no footer":                 {make([]byte, 100), "footer at 49: not one of eStargz"},
		"far TOC offset":            {append(plain[:end:end], estargz.FooterBytes(1<<40)...), "TOC offset 1099511627776 is outside of the blob"},
		"TOC offset in footer":      {append(plain[:end:end], estargz.FooterBytes(int64(end))...), "is outside of the blob"},
		"TOC offset to a file":      {append(plain[:end:end], estargz.FooterBytes(a.Offset)...), "TOC at"},
		"truncated TOC":             {append(plain[:end-40:end-40], estargz.FooterBytes(b.MemberEnd())...), "unexpected EOF"},
		"not JSON":                  {withTOC(t, payload, "rubbish"), "invalid character"},
		"not an object":             {withTOC(t, payload, "[]"), "want {"},
		"cut JSON":                  {withTOC(t, payload, `{"version":1,"entries":[{"name":"a"`), "unexpected EOF"},
		"another version":           {withTOC(t, payload, `{"version":2,"entries":[]}`), "version 2 is unknown"},
		"entries of two kinds":      {withTOC(t, payload, `{"entries":[],"entries":[]}`), "entries stand twice"},
		"entries no list":           {withTOC(t, payload, `{"entries":{}}`), "want a list"},
		"enormous entry":            {withTOC(t, payload, `{"entries":[{"name":"`+strings.Repeat("x", 5<<20)+`"}]}`), "larger than 4194304 bytes"},
		"chunks of a replaced file": {reg(`"size":1099511627776,"offset":%d},{"name":"a","type":"reg"`, a.Offset), "more than deflate can hold"},
		"long path":                 {entries(`{"name":"` + strings.Repeat("x/", 4096) + `","type":"dir"}`), "more than 4096"},
		"long link":                 {entries(`{"name":"l","type":"symlink","linkName":"` + strings.Repeat("x/", 4096) + `"}`), "more than 4096"},
		"unknown type":              {entries(`{"name":"a","type":"door"}`), `unknown type "door"`},
		"bad time":                  {entries(`{"name":"a","type":"dir","modtime":"noon"}`), "noon"},
		"zero byte in a name":       {entries(`{"name":"a\u0000","type":"dir"}`), "zero byte"},
		"chunk of nothing":          {entries(`{"name":"a","type":"chunk","offset":1}`), "a chunk of no file"},
		"chunk of a directory":      {entries(`{"name":"a","type":"reg"},{"name":"d","type":"dir"},{"type":"chunk","offset":1}`), "a chunk of no file"},
		"root a file":               {entries(`{"name":"/","type":"reg"}`), "the root is a reg"},
		"negative size":             {reg(`"size":-1`), "size -1"},
		"negative offset":           {reg(`"size":1,"offset":-1`), "offset -1"},
		"negative inner offset":     {reg(`"size":1,"offset":1,"innerOffset":-5`), "inner offset -5"},
		"offset past the end":       {reg(`"size":1,"offset":1000000000000`), "offset 1000000000000"},
		"offset at the end":         {reg(`"size":1,"offset":%d`, len(payload)), "is the end of the blob"},
		"offsets out of order":      {entries(`{"name":"a","type":"reg","size":1,"offset":20},{"name":"b","type":"reg","size":1,"offset":10}`), "want them in the order of the blob"},
		"absurd size":               {reg(`"size":9223372036854775807,"offset":1`), "more than deflate can hold"},
		"absurd inner offset":       {reg(`"size":1,"offset":1,"innerOffset":9223372036854775807`), "more than deflate can hold"},
		"negative chunk":            {reg(`"size":1,"offset":1,"chunkSize":-1`), "chunk 0 has -1 bytes"},
		"chunk past the file":       {reg(`"size":1,"offset":1,"chunkSize":2`), "chunk 0 has 2 bytes of the 1"},
		"missing chunk":             {reg(`"size":10,"offset":1,"chunkSize":2`), "chunks end at 2 of 10 bytes"},
		"gap between chunks":        {entries(`{"name":"a","type":"reg","size":10,"offset":1,"chunkSize":2},{"type":"chunk","offset":2,"chunkOffset":3}`), "chunk 1 starts at 3, want 2"},
		"first chunk elsewhere":     {reg(`"size":10,"offset":1,"chunkOffset":1`), "chunk 0 starts at 1"},
		"chunk of empty file":       {entries(`{"name":"a","type":"reg"},{"type":"chunk","offset":2}`), "chunk 0 has 0 bytes"},
		"no digest":                 {reg(`"size":1,"offset":1,"chunkDigest":"sha256:abc"`), "chunk 0: digest"},
		"unknown digest":            {reg(`"size":1,"offset":1,"chunkDigest":"md5:d41d8cd98f00b204e9800998ecf8427e"`), "unsupported digest"},
		"link to nothing":           {entries(`{"name":"a","type":"hardlink","linkName":"b"}`), "which is not in the layer"},
		"link circle":               {entries(`{"name":"a","type":"hardlink","linkName":"b"},{"name":"b","type":"hardlink","linkName":"a"}`), "leads to no file"},
		"link to a directory":       {entries(`{"name":"a","type":"hardlink","linkName":"d"},{"name":"d","type":"dir"}`), "leads to the directory"},
		"file under a file":         {entries(`{"name":"a","type":"reg"},{"name":"a/b","type":"reg"}`), `"a/b" lies under "a", which is a reg`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := estargz.Open(bytes.NewReader(c.blob), int64(len(c.blob)), estargz.OpenOptions{})
			require.ErrorContains(t, err, c.want)
		})
	}
	_, err := estargz.Open(bytes.NewReader(plain), int64(len(plain)), estargz.OpenOptions{TOCDigest: digest.FromString("other")})
	require.ErrorContains(t, err, "its digest is "+info.TOCDigest.String()+", want")
}

func TestReadChunkRefuses(t *testing.T) {
	plain, _ := write(t, tarOf(t, file("a", text(1, 100_000)), file("b", "b")), estargz.Options{})
	a, _ := open(t, plain).Lookup("a")
	for name, c := range map[string]struct {
		change func(blob []byte)
		want   string
	}{
		"a flipped bit":  {func(p []byte) { p[a.Offset+a.MemberEnd()>>1] ^= 4 }, ""},
		"no gzip":        {func(p []byte) { p[a.Offset] = 0 }, "invalid header"},
		"another member": {func(p []byte) { copy(p[a.Offset:a.MemberEnd()], plain[:a.Offset]) }, ""},
		"zeros":          {func(p []byte) { clear(p[a.Offset:a.MemberEnd()]) }, "invalid header"},
	} {
		t.Run(name, func(t *testing.T) {
			blob := bytes.Clone(plain)
			c.change(blob)
			r := open(t, blob)
			a, _ := r.Lookup("a")
			_, err := r.ReadChunk(a)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, fmt.Sprintf(`"a" from 0, member at %d of the blob`, a.Offset))
			f, err := r.OpenFile("a")
			require.NoError(t, err)
			n, err := io.Copy(io.Discard, f)
			require.Error(t, err)
			require.Zero(t, n, "bytes that were not verified")
		})
	}
}

func TestReadChunkRefusesAnotherDigest(t *testing.T) {
	plain, _ := write(t, tarOf(t, file("a", "contents")), estargz.Options{})
	a, _ := open(t, plain).Lookup("a")
	toc := fmt.Sprintf(`{"entries":[{"name":"a","type":"reg","size":8,"offset":%d,"chunkDigest":%q}]}`, a.Offset, digest.FromString("other"))
	r := open(t, withTOC(t, plain[:a.MemberEnd()], toc))
	a, _ = r.Lookup("a")
	_, err := r.ReadChunk(a)
	require.ErrorContains(t, err, "the digest of the contents is "+digest.FromString("contents").String())
}

func FuzzFooter(f *testing.F) {
	f.Add(estargz.FooterBytes(0))
	f.Add(estargz.FooterBytes(1 << 40))
	f.Add([]byte("\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x16\x000000000000000000STARGZ\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff\x15\x00SG\x11\x00STARGZEXTERNALTOC\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, blob []byte) {
		offset, external, err := estargz.ReadFooter(blob)
		if err == nil && !external && (offset < 0 || offset >= int64(len(blob))) {
			t.Fatalf("TOC offset %d in a blob of %d bytes", offset, len(blob))
		}
	})
}

// FuzzTOC opens a blob with whatever JSON as its TOC, and reads all it claims.
func FuzzTOC(f *testing.F) {
	plain, _ := write(f, tarOf(f, file("a", text(1, 1000)), link("l", "a"), file("b", text(2, 5000))), estargz.Options{ChunkSize: 1000})
	r := open(f, plain)
	var all []string
	for _, e := range r.Entries() {
		p, err := json.Marshal(e)
		require.NoError(f, err)
		all = append(all, string(p))
	}
	f.Add([]byte(`{"version":1,"entries":[` + strings.Join(all, ",") + `]}`))
	f.Add([]byte(`{"version":1,"entries":[{"name":"a/b/../../..","type":"dir"},{"name":"x","type":"reg","size":5,"offset":1,"innerOffset":3,"xattrs":{"user.x":"AAA="}}]}`))
	b, _ := r.Lookup("b")
	payload := plain[:b.MemberEnd()]
	f.Fuzz(func(t *testing.T, toc []byte) {
		checkHostile(t, withTOC(t, payload, string(toc)))
	})
}

// FuzzReader opens whatever bytes.
func FuzzReader(f *testing.F) {
	plain, _ := write(f, tarOf(f, file("a", text(1, 1000)), dir("d"), symlink("d/s", "a"), file("d/b", "b")), estargz.Options{})
	f.Add(plain)
	shared, _ := write(f, tarOf(f, file("a", "a"), file("b", "b")), estargz.Options{MinChunkSize: 100, Level: estargz.NoCompression})
	f.Add(shared)
	f.Fuzz(func(t *testing.T, blob []byte) { checkHostile(t, blob) })
}

// checkHostile reads all of a blob that may lie. Whatever is handed out must
// have the digest that the TOC has for it.
func checkHostile(t *testing.T, blob []byte) {
	estargz.Detect(bytes.NewReader(blob), int64(len(blob)))
	if u, err := estargz.Unpack(bytes.NewReader(blob), int64(len(blob))); err == nil {
		io.Copy(io.Discard, io.LimitReader(u, 1<<20))
	}
	r, err := estargz.Open(bytes.NewReader(blob), int64(len(blob)), estargz.OpenOptions{})
	if err != nil {
		return
	}
	for _, e := range r.Entries() {
		if strings.HasPrefix(e.Name, "/") || strings.Contains("/"+e.Name+"/", "/../") {
			t.Fatalf("unsafe name %q", e.Name)
		}
		p, err := r.ReadChunk(e)
		if err == nil && e.HasContents() && int64(len(p)) != e.ChunkSize {
			t.Fatalf("%q: %d bytes of %d", e.Name, len(p), e.ChunkSize)
		}
		if f, err := r.OpenFile(e.Name); err == nil {
			io.Copy(io.Discard, io.LimitReader(f, 1<<20))
		}
		r.Children(e.Name)
	}
	var b bytes.Buffer
	if _, err := estargz.Reorder(context.Background(), &b, r, []string{"b"}, estargz.Options{Level: 1}); err != nil {
		return
	}
	open(t, b.Bytes())
	if want, err := treeOf(unpack(t, blob)); err == nil {
		got, err := treeOf(unpack(t, b.Bytes()))
		require.NoError(t, err)
		requireSameTree(t, want, got)
	}
}

// FuzzWriter writes whatever tar. What is not refused must come back whole and
// read as the standard library reads it.
func FuzzWriter(f *testing.F) {
	f.Add(tarOf(f, file("a", text(1, 1000)), dir("d"), symlink("d/s", "a"), file("d/b", "b"), link("l", "a")), 0, 0)
	f.Add(tarOf(f, file("a", text(1, 1000)).with(xattr("user.x", "\x00")), file("a", text(2, 3000)), file("b", "")), 700, 2000)
	f.Add(gnuSparse(f), 1, 1)
	for _, entries := range oddTars {
		f.Add(tarOf(f, entries...), 0, 1000)
	}
	f.Fuzz(func(t *testing.T, input []byte, chunkSize, minChunkSize int) {
		input = withChecksums(input)
		var b bytes.Buffer
		opts := estargz.Options{Level: 1, ChunkSize: int64(chunkSize), MinChunkSize: int64(minChunkSize)}
		info, err := estargz.Write(context.Background(), &b, bytes.NewReader(input), opts)
		if err != nil {
			return
		}
		if !bytes.Equal(input, unpack(t, b.Bytes())) {
			t.Fatal("unpacking returns another tar")
		}
		r, err := estargz.Open(bytes.NewReader(b.Bytes()), info.Size, estargz.OpenOptions{TOCDigest: info.TOCDigest, Dense: true})
		if err != nil {
			t.Fatalf("what was written cannot be opened: %v", err)
		}
		for _, e := range r.Entries() {
			if _, err := r.ReadChunk(e); err != nil {
				t.Fatalf("what was written cannot be read: %v", err)
			}
		}
		if want, err := treeOf(input); err == nil {
			requireShows(t, want, r)
		}
	})
}

// withChecksums makes the checksums of a tar's headers right, so that a fuzzer
// gets past them.
func withChecksums(p []byte) []byte {
	all := bytes.Clone(p)
	p = all
	for len(p) >= 512 && !bytes.Equal(p[:512], make([]byte, 512)) {
		h := p[:512]
		copy(h[148:], "        ")
		sum := 0
		for _, b := range h {
			sum += int(b)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		var size int
		fmt.Sscanf(string(h[124:135]), "%o", &size)
		p = p[min(len(p), 512+(max(size, 0)+511)&^511):]
	}
	return all
}
