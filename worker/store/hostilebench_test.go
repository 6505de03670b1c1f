package store

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// hostileBlobs are layers of a size with as much in them as the limits let pass,
// and an honest one of empty files with ordinary names.
var hostileBlobs = []struct {
	name string
	make func(b *testing.B, size int) *testBlob
}{
	{"honest", func(b *testing.B, size int) *testBlob {
		return emptyFiles(b, size/41, 0, func(i int) string { return fmt.Sprintf("usr/lib/%x/%x-%x.txt", i%977, i*7919%65521, i*104729) })
	}},
	{"dense", func(b *testing.B, size int) *testBlob {
		return emptyFiles(b, size/25, size, func(i int) string { return fmt.Sprint(i) })
	}},
	{"files", func(b *testing.B, size int) *testBlob {
		return listed(b, size, (56<<20+9*size)/360, func(i int) string { return fmt.Sprintf(`{"name":"%x","type":"fifo"}`, i) })
	}},
	{"replaced", func(b *testing.B, size int) *testBlob {
		return listed(b, size, (56<<20+9*size)/360, func(int) string { return `{"name":"a","type":"fifo"}` })
	}},
	{"links", func(b *testing.B, size int) *testBlob {
		return listed(b, size, (56<<20+9*size)/400, func(i int) string {
			if i == 0 {
				return `{"name":"0","type":"reg"}`
			}
			return fmt.Sprintf(`{"name":"%d","type":"hardlink","linkName":"%d"}`, i, i-1)
		})
	}},
	{"depth", func(b *testing.B, size int) *testBlob {
		deep := strings.Repeat("/d", 2000)
		return listed(b, size, 80+size>>16, func(i int) string { return fmt.Sprintf(`{"name":"%d%s/%d","type":"dir"}`, i%2, deep, i) })
	}},
	{"xattrs", func(b *testing.B, size int) *testBlob {
		value := strings.Repeat("AAAA", 10<<10)
		return listed(b, size, 300, func(i int) string {
			return fmt.Sprintf(`{"name":"%d","type":"fifo","xattrs":{"user.a":"%s"}}`, i, value)
		})
	}},
	{"space", func(b *testing.B, size int) *testBlob {
		return listed(b, size, 1, func(int) string { return strings.Repeat(" ", 15<<20+40*size) + `{"name":"a","type":"fifo"}` })
	}},
}

// emptyFiles is a layer of empty files, filled up to a size with noise.
func emptyFiles(b *testing.B, n, size int, name func(i int) string) *testBlob {
	var in bytes.Buffer
	w := tar.NewWriter(&in)
	for i := range n {
		h := tar.Header{Typeflag: tar.TypeReg, Name: name(i), ModTime: time.Unix(1_700_000_000+int64(i)*86243%10_000_000, 0)}
		if size > 0 {
			h.ModTime = time.Time{}
		}
		require.NoError(b, w.WriteHeader(&h))
	}
	if fill := size - 11*n; fill > 0 {
		require.NoError(b, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "fill", Size: int64(fill)}))
		noise := make([]byte, fill)
		_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
		_, err := w.Write(noise)
		require.NoError(b, err)
	}
	require.NoError(b, w.Close())
	var out bytes.Buffer
	info, err := estargz.Write(context.Background(), &out, &in, estargz.Options{Level: 1})
	require.NoError(b, err)
	return &testBlob{key: Key{Blob: info.Digest, TOC: info.TOCDigest}, data: out.Bytes()}
}

// listed has a TOC of n entries behind a payload that does not matter.
func listed(b *testing.B, size, n int, entry func(i int) string) *testBlob {
	var all strings.Builder
	for i := range n {
		if i > 0 {
			all.WriteByte(',')
		}
		all.WriteString(entry(i))
	}
	return withEntries(b, make([]byte, size), all.String())
}

// hostileSteps are what a daemon does with a layer.
var hostileSteps = []struct {
	name string
	do   func(b *testing.B, blob *testBlob) error
}{
	{"open", func(_ *testing.B, blob *testBlob) error {
		r, err := estargz.Open(bytes.NewReader(blob.data), blob.size(), estargz.OpenOptions{})
		if err == nil {
			for _, e := range r.Entries() {
				r.Lookup(e.Name)
			}
		}
		return err
	}},
	{"order", func(_ *testing.B, blob *testBlob) error {
		r, err := estargz.Open(bytes.NewReader(blob.data), blob.size(), estargz.OpenOptions{})
		if err != nil {
			return err
		}
		_, err = estargz.Reorder(context.Background(), io.Discard, r, nil, estargz.Options{Level: 1, Pool: estargz.NewPool(1, 4<<20)})
		return err
	}},
	{"index", func(b *testing.B, blob *testBlob) error { return blob.addTo(openStore(b)) }},
	{"walk", func(b *testing.B, blob *testBlob) error {
		b.StopTimer()
		defer b.StartTimer()
		s := openStore(b)
		if err := blob.addTo(s); err != nil {
			return err
		}
		l, err := s.Layer(blob.key)
		if err != nil {
			return err
		}
		b.StartTimer()
		visit(l, Root)
		return nil
	}},
}

func visit(l *Layer, dir Node) {
	for _, e := range l.Entries(dir, 0) {
		l.Lookup(dir, e.Name)
		l.Attr(e.Node)
		for range l.Xattrs(e.Node) {
		}
		visit(l, e.Node)
	}
}

// BenchmarkHostile is what hack/bench hostile shows: the time of each step, and in a
// run before that the most memory, with the collector at work all the time. The loop
// resets the timer, which a step may have started.
func BenchmarkHostile(b *testing.B) {
	for _, mib := range []int{1, 10} {
		for _, h := range hostileBlobs {
			blob := h.make(b, mib<<20)
			for _, step := range hostileSteps {
				b.Run(fmt.Sprintf("%dMiB/%s/side=%s", mib, step.name, h.name), func(b *testing.B) {
					var err error
					peak := peakOf(func() { _ = step.do(b, blob) })
					for b.Loop() {
						err = step.do(b, blob)
					}
					b.StopTimer()
					b.ReportMetric(float64(peak)/(1<<20), "MiB")
					refused := 0.0
					if err != nil {
						refused = 1
					}
					b.ReportMetric(refused, "refused")
				})
			}
		}
	}
}

// peakOf returns about how many bytes more are in use at a time while f runs.
func peakOf(f func()) int64 {
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	runtime.GC()
	inUse := func() int64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(s)
		return int64(s[0].Value.Uint64())
	}
	before, most := inUse(), int64(0)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			most = max(most, inUse()-before)
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	f()
	close(done)
	<-ended
	return most
}
