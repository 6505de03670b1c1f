package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// liarOf is a blob with the same TOC, which starts elsewhere.
func liarOf(t *testing.T, b *testBlob, by int64) *testBlob {
	t.Helper()
	at, err := estargz.FindTOC(b.data, b.size())
	require.NoError(t, err)
	lie := at + by
	data := append(bytes.Clone(b.data[:min(at, lie)]), make([]byte, max(by, 0))...)
	data = append(append(data, b.data[at:len(b.data)-estargz.FooterSize]...), footer(int(lie))...)
	return &testBlob{key: b.key, data: data}
}

// TestLyingFooter makes the index of a blob whose registry says that the TOC starts
// elsewhere. Those who read from another registry find all files.
func TestLyingFooter(t *testing.T) {
	const files = 20
	b := blobOf(t, estargz.Options{}, numbered(files, 3000)...)
	for _, by := range []int64{-500, -1, 1, 4096, 1 << 20} {
		for _, window := range []int64{1, 4 << 10, 2 << 20} {
			t.Run(fmt.Sprint(by, window), func(t *testing.T) {
				l := addedTo(t, openStore(t), liarOf(t, b, by))
				f := &fake{data: b.data, window: window, answer: func(_ context.Context, _ int, p []byte) (io.ReadCloser, error) {
					return io.NopCloser(&withEOF{p}), nil
				}}
				l.Connect(f.all())
				for i := range files {
					check(t, l, 3000, i)
				}
				require.True(t, l.Complete())
				require.LessOrEqual(t, l.Stats().Corrupt, int64(1))
				require.LessOrEqual(t, l.Stats().Here, l.Stats().Size)
			})
		}
	}
	t.Run("filled", func(t *testing.T) {
		l := addedTo(t, openStore(t), liarOf(t, b, -500))
		f := &fake{data: b.data, window: 4 << 10}
		l.Connect(f.all())
		require.NoError(t, l.Fill(t.Context()))
		require.True(t, l.Complete())
	})
}

// withEOF says with the last bytes that they are.
type withEOF struct{ left []byte }

func (r *withEOF) Read(p []byte) (int, error) {
	n := copy(p, r.left)
	if r.left = r.left[n:]; len(r.left) > 0 {
		return n, nil
	}
	return n, io.EOF
}
