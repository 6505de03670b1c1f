package profile

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func of(files ...File) *Profile { return &Profile{Files: files} }

func file(path string, size int64, ranges ...Range) File {
	return File{Path: path, Size: size, Ranges: ranges}
}

func TestMerge(t *testing.T) {
	for name, tc := range map[string]struct {
		in   []*Profile
		want *Profile
	}{
		"nothing":             {nil, of()},
		"paths in order":      {[]*Profile{of(file("b", 1), file("a", 1)), of(file("c", 1))}, of(file("a", 1), file("b", 1), file("c", 1))},
		"one file, two names": {[]*Profile{of(file("/a/../b", 1)), of(file("b", 1))}, of(file("b", 1))},
		"the larger size":     {[]*Profile{of(file("a", 1)), of(file("a", 9))}, of(file("a", 9))},
		"ranges join": {
			[]*Profile{of(file("a", 9, Range{4, 2}, Range{0, 2})), of(file("a", 9, Range{2, 2}))},
			of(file("a", 9, Range{0, 6})),
		},
		"ranges stay apart": {
			[]*Profile{of(file("a", 9, Range{6, 1})), of(file("a", 9, Range{0, 2}))},
			of(file("a", 9, Range{0, 2}, Range{6, 1})),
		},
		"the whole file wins": {[]*Profile{of(file("a", 9, Range{6, 1})), of(file("a", 9))}, of(file("a", 9))},
	} {
		t.Run(name, func(t *testing.T) {
			got := Merge(tc.in...)
			require.Len(t, got.Files, len(tc.want.Files))
			for i := range got.Files {
				require.Equal(t, tc.want.Files[i], got.Files[i])
			}
		})
	}
}

func TestTouched(t *testing.T) {
	require.EqualValues(t, 9, file("a", 9).Touched())
	require.EqualValues(t, 3, file("a", 9, Range{0, 2}, Range{6, 1}).Touched())
}

func TestEncodeDecode(t *testing.T) {
	p := of(file("usr/bin/python3", 7), file("a \"b\"\n", 0), file("db", 1<<40, Range{1 << 39, 4096}))
	encoded, err := p.Encode()
	require.NoError(t, err)
	again, err := of(p.Files[2], p.Files[0], p.Files[1]).Encode()
	require.NoError(t, err)
	require.Equal(t, string(encoded), string(again), "the order of recording leaves no trace")

	decoded, err := Decode(encoded)
	require.NoError(t, err)
	require.Equal(t, Merge(p), decoded)

	empty, err := of().Encode()
	require.NoError(t, err)
	decoded, err = Decode(empty)
	require.NoError(t, err)
	require.Empty(t, decoded.Files)
}

func TestDecodeBadInput(t *testing.T) {
	for in, want := range map[string]string{
		``:                                   "profile: unexpected end",
		`[]`:                                 "cannot unmarshal",
		`{"files":[{"size":1}]}`:             "a path and a size",
		`{"files":[{"path":"a","size":-1}]}`: "size of -1 bytes",
		`{"files":[{"path":"a","size":4,"ranges":[{"offset":-1,"size":1}]}]}`:                  "from -1",
		`{"files":[{"path":"a","size":4,"ranges":[{"offset":2,"size":3}]}]}`:                   "range of 3 bytes from 2 in a file of 4",
		`{"files":[{"path":"a","size":4,"ranges":[{"offset":0,"size":0}]}]}`:                   "range of 0 bytes",
		`{"files":[{"path":"a","size":4,"ranges":[{"offset":9223372036854775807,"size":1}]}]}`: "range of 1 bytes",
	} {
		_, err := Decode([]byte(in))
		require.ErrorContains(t, err, want, in)
	}
}

func TestPack(t *testing.T) {
	p := of()
	for i := range 2000 {
		p.Files = append(p.Files, file("usr/lib/"+strings.Repeat("x", i%200), int64(i)))
	}
	packed, err := p.Pack()
	require.NoError(t, err)
	require.True(t, utf8.Valid(packed), "the history of builds holds text alone")
	r, _, err := ParseRequest(nil, Default())
	require.NoError(t, err)
	got, err := r.Attached(map[string][]byte{r.MetadataKey("linux/arm64/v8"): packed}, "linux/arm64/v8")
	require.NoError(t, err)
	require.Equal(t, Merge(p), got)

	other, _, err := ParseRequest(map[string]string{"estargz-profile-idle": "1s"}, Default())
	require.NoError(t, err)
	got, err = other.Attached(map[string][]byte{r.MetadataKey("linux/arm64/v8"): packed}, "linux/arm64/v8")
	require.NoError(t, err)
	require.Nil(t, got, "the profile of another request")
	got, err = r.Attached(nil, "linux/amd64")
	require.NoError(t, err)
	require.Nil(t, got)
	_, err = r.Attached(map[string][]byte{r.MetadataKey("linux/amd64"): []byte("no gzip")}, "linux/amd64")
	require.ErrorContains(t, err, "profile of linux/amd64")
}
