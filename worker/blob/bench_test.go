package blob

import (
	"io"
	"testing"
)

// BenchmarkRange reads over loopback: what a request costs, and a byte.
func BenchmarkRange(b *testing.B) {
	const size = 64 << 20
	r := serve(b, contents(size))
	for name, n := range map[string]int64{"4KiB": 4 << 10, "1MiB": 1 << 20, "64MiB": size} {
		b.Run(name, func(b *testing.B) {
			v := r.open(Options{}).With(Wanted)
			buf := make([]byte, 128<<10)
			b.SetBytes(n)
			b.ReportAllocs()
			for b.Loop() {
				rc, err := v.Range(b.Context(), 0, n)
				if err != nil {
					b.Fatal(err)
				}
				if got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, rc, buf); got != n || err != nil {
					b.Fatal(got, err)
				}
				rc.Close()
			}
		})
	}
}
