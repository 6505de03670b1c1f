package estargz_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"testing"

	stock "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// benchTar is the tar named by ESTARGZ_BENCH_TAR, or one of the tests.
func benchTar(b *testing.B) []byte {
	name := os.Getenv("ESTARGZ_BENCH_TAR")
	if name == "" {
		return ordinary()
	}
	p, err := os.ReadFile(name)
	require.NoError(b, err)
	return p
}

func BenchmarkWrite(b *testing.B) {
	input := benchTar(b)
	for _, level := range []int{1, 3, 6, 9} {
		b.Run(fmt.Sprintf("level=%d", level), func(b *testing.B) {
			pool := estargz.NewPool(0, 0)
			b.SetBytes(int64(len(input)))
			var info *estargz.Info
			for b.Loop() {
				var err error
				info, err = estargz.Write(context.Background(), io.Discard, bytes.NewReader(input), estargz.Options{Level: level, Pool: pool})
				require.NoError(b, err)
			}
			b.ReportMetric(float64(info.Size), "blob-bytes")
		})
	}
}

// BenchmarkStockWrite is what BuildKit's own type does, less its passes for
// the diffID.
func BenchmarkStockWrite(b *testing.B) {
	input := benchTar(b)
	b.SetBytes(int64(len(input)))
	var c countingWriter
	for b.Loop() {
		c = 0
		w := stock.NewWriterLevel(&c, 6)
		require.NoError(b, w.AppendTarLossLess(bytes.NewReader(input)))
		_, err := w.Close()
		require.NoError(b, err)
	}
	b.ReportMetric(float64(c), "blob-bytes")
}

type countingWriter int64

func (c *countingWriter) Write(p []byte) (int, error) {
	*c += countingWriter(len(p))
	return len(p), nil
}

func BenchmarkOpen(b *testing.B) {
	blob, _ := write(b, benchTar(b), estargz.Options{Level: 1})
	for b.Loop() {
		open(b, blob)
	}
}
