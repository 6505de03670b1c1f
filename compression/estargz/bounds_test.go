package estargz_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// A meteredBlob counts the bytes that are read of a blob.
type meteredBlob struct {
	*bytes.Reader
	read   int64
	onRead func(total int64)
}

func (b *meteredBlob) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.Reader.ReadAt(p, off)
	b.read += int64(n)
	if b.onRead != nil {
		b.onRead(b.read)
	}
	return n, err
}

// sharedLayer is a layer of files that share one member, and their names from
// the last to the first.
func sharedLayer(t *testing.T) (blob []byte, backwards []string) {
	var files []tarEntry
	for i := range 800 {
		f := file(fmt.Sprintf("%03d", i), noise(uint64(i), 4000))
		files = append(files, f)
		backwards = append([]string{f.Name}, backwards...)
	}
	blob, _ = write(t, tarOf(t, files...), estargz.Options{Level: 1, MinChunkSize: 4 << 20})
	require.Equal(t, open(t, blob).Entries()[0].Offset, open(t, blob).Entries()[799].Offset)
	return blob, backwards
}

// TestReorderReadsSharedMembersFewTimes: each file before the last one read has
// its member decompressed again.
func TestReorderReadsSharedMembersFewTimes(t *testing.T) {
	blob, backwards := sharedLayer(t)
	metered := &meteredBlob{Reader: bytes.NewReader(blob)}
	r, err := estargz.Open(metered, int64(len(blob)), estargz.OpenOptions{})
	require.NoError(t, err)
	var b bytes.Buffer
	info, err := estargz.Reorder(context.Background(), &b, r, backwards[:700], estargz.Options{Level: 1})
	require.NoError(t, err)
	require.LessOrEqual(t, metered.read, int64(10*len(blob)))

	inTarOrder := append([]string(nil), backwards[:700]...)
	for i, j := 0, len(inTarOrder)-1; i < j; i, j = i+1, j-1 {
		inTarOrder[i], inTarOrder[j] = inTarOrder[j], inTarOrder[i]
	}
	want, err := estargz.OrderTar(unpack(t, blob), inTarOrder)
	require.NoError(t, err)
	checkBlob(t, want, b.Bytes(), info)
}

func TestReorderOfSharedMembersEndsWithItsContext(t *testing.T) {
	blob, backwards := sharedLayer(t)
	metered := &meteredBlob{Reader: bytes.NewReader(blob)}
	r, err := estargz.Open(metered, int64(len(blob)), estargz.OpenOptions{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	half := int64(len(blob) / 2)
	metered.read, metered.onRead = 0, func(total int64) {
		if total > half {
			cancel()
		}
	}
	_, err = estargz.Reorder(ctx, io.Discard, r, backwards[:10], estargz.Options{})
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, metered.read, half+64<<10)
}

// TestReorderTriesFewMarkers: the end of a deflate block at a byte looks like
// the boundary behind the contents, and a member can have any number of them.
// Each is tried by decompressing all that follows.
func TestReorderTriesFewMarkers(t *testing.T) {
	contents := text(1, 8192)
	original := tarOf(t, file("a", contents), dir("d/"), file("z", "z"))
	const headers = 512
	heads := original[headers+len(contents):][:2*headers] // of "d/" and "z"
	for markers, kept := range map[int]bool{0: true, 5: true, 1 << 17: false} {
		t.Run(fmt.Sprint(markers), func(t *testing.T) {
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			var offsets []int
			member := func() {
				require.NoError(t, z.Close())
				offsets = append(offsets, b.Len())
				z.Reset(&b)
			}
			z.Write(original[:headers])
			member()
			io.WriteString(z, contents)
			z.Flush()
			z.Write(heads[:headers])
			for range markers {
				z.Flush()
			}
			z.Write(heads[headers:])
			member()
			z.Write(original[headers+len(contents)+2*headers:])
			member()
			blob := withTOC(t, b.Bytes(), fmt.Sprintf(`{"version":1,"entries":[
				{"name":"a","type":"reg","mode":420,"size":%d,"offset":%d,"chunkDigest":%q},
				{"name":"d/","type":"dir","mode":493},
				{"name":"z","type":"reg","mode":420,"size":1,"offset":%d,"chunkDigest":%q}]}`,
				len(contents), offsets[0], digest.FromString(contents), offsets[1], digest.FromString("z")))

			got, _ := reorder(t, blob, []string{"z"}, estargz.Options{Level: 1})
			want, err := estargz.OrderTar(original, []string{"z"})
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, unpack(t, got)), "another tar")
			a, ok := open(t, got).Lookup("a")
			require.True(t, ok)
			same := bytes.Equal(blob[offsets[0]:][:1000], got[a.Offset:][:1000])
			require.Equal(t, kept, same, "contents kept as they were compressed")
		})
	}
}
