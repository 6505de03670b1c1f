package estargz_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// forged is a blob of the files a and b with a member for a, whose contents are
// followed by what hide writes, at a boundary, and then by the header of b. Size
// and checksum of the member are those without what is hidden.
func forged(t *testing.T, hide func(w *flate.Writer, out *bytes.Buffer)) []byte {
	t.Helper()
	p := tarOf(t, file("a", text(1, 1024)), file("b", text(2, 512)))
	var b bytes.Buffer
	member := func(p []byte) {
		z := gzip.NewWriter(&b)
		_, err := z.Write(p)
		require.NoError(t, err)
		require.NoError(t, z.Close())
	}
	member(p[:512])
	a := b.Len()
	contents, heads := p[512:1536], p[1536:2048]
	b.Write([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff})
	w, err := flate.NewWriter(&b, 6)
	require.NoError(t, err)
	_, err = w.Write(contents)
	require.NoError(t, err)
	hide(w, &b)
	w.Reset(&b)
	_, err = w.Write(heads)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	b.Write(binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(p[512:2048])))
	b.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(contents)+len(heads))))
	end := b.Len()
	member(p[2048:])
	return withTOC(t, b.Bytes(), fmt.Sprintf(`{"version":1,"entries":[{"name":"a","type":"reg","size":1024,"offset":%d},{"name":"b","type":"reg","size":512,"offset":%d}]}`, a, end))
}

// TestReorderRefusesHiddenBytes: contents that are taken over as they were
// compressed are all that they decompress to.
func TestReorderRefusesHiddenBytes(t *testing.T) {
	for name, hide := range map[string]func(w *flate.Writer, out *bytes.Buffer){
		"nothing": func(w *flate.Writer, _ *bytes.Buffer) { w.Flush() },
		"bytes":   func(w *flate.Writer, _ *bytes.Buffer) { w.Write([]byte("hidden")); w.Flush() },
		"the end": func(w *flate.Writer, out *bytes.Buffer) { w.Close(); out.Write([]byte{0, 0, 0xff, 0xff}) },
		"half of a block": func(w *flate.Writer, out *bytes.Buffer) {
			w.Flush()
			out.Write([]byte{0, 5, 0, 0xfa, 0xff, 0, 0, 0xff, 0xff})
		},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			_, err := estargz.Reorder(context.Background(), &b, open(t, forged(t, hide)), []string{"b"}, estargz.Options{})
			if name != "nothing" {
				require.ErrorContains(t, err, "member at")
				return
			}
			require.NoError(t, err)
			_, err = treeOf(unpack(t, b.Bytes()))
			require.NoError(t, err)
		})
	}
}

// TestReorderRefusesFilesBehindTOC: who unpacks the layer gets them.
func TestReorderRefusesFilesBehindTOC(t *testing.T) {
	plain, _ := write(t, tarOf(t, file("a", "a")), estargz.Options{})
	a, _ := open(t, plain).Lookup("a")
	entry := fmt.Sprintf(`{"version":1,"entries":[{"name":"a","type":"reg","size":1,"offset":%d}]}`, a.Offset)
	for _, size := range []int{len(entry), 512, 600} { // padded or not
		toc := entry + strings.Repeat(" ", size-len(entry))
		inTar := tarOf(t, file(estargz.TOCName, toc))
		for behind, hidden := range map[string][]byte{
			"a file":          tarOf(t, file("hidden", "h")),
			"endless headers": bytes.Repeat(tarOf(t, file("h", "h").with(xattr("user.x", strings.Repeat("x", 500<<10))))[:501<<10], 3),
			"the end":         tarOf(t),
		} {
			var b bytes.Buffer
			b.Write(plain[:a.MemberEnd()])
			for _, p := range [][]byte{inTar[:len(inTar)-1024], hidden} {
				z := gzip.NewWriter(&b)
				_, err := z.Write(p)
				require.NoError(t, err)
				require.NoError(t, z.Close())
			}
			b.Write(estargz.FooterBytes(a.MemberEnd()))
			_, err := estargz.Reorder(context.Background(), io.Discard, open(t, b.Bytes()), nil, estargz.Options{})
			if behind == "the end" {
				require.NoError(t, err)
				continue
			}
			require.ErrorContains(t, err, "files stand behind the TOC", behind)
		}
	}
}

// TestReorderVerifiesWhatItLeavesOut: the headers behind an old landmark are kept,
// its contents are not, and the checksum is of both.
func TestReorderVerifiesWhatItLeavesOut(t *testing.T) {
	stored := estargz.Options{Level: estargz.NoCompression}
	z := file("z", "abc")
	z.ModTime = time.Unix(0o1234567, 0)
	plain, _ := write(t, tarOf(t, file("x", "abc"), z), stored)
	blob, _ := reorder(t, plain, []string{"x"}, stored)
	at := bytes.LastIndex(blob, []byte("1234567\x00"))
	copy(blob[at:], "7654321") // the sum of the header stays as it was
	_, err := estargz.Reorder(context.Background(), io.Discard, open(t, blob), []string{"z"}, stored)
	require.ErrorContains(t, err, "member at")
	require.ErrorContains(t, err, "checksum")
}
