package store

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	stock "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// manyFiles is a layer of n files and directories as Python packages have them.
func manyFiles(n int) []tarEntry {
	entries := make([]tarEntry, 0, n)
	mtime := time.Unix(1_700_000_000, 0)
	for i := range n {
		dirName := fmt.Sprintf("usr/lib/python3/dist-packages/package%04d/", i/20)
		e := dir(dirName)
		if i%20 > 0 {
			e = file(fmt.Sprintf("%smodule_%d.py", dirName, i), fmt.Sprint(i))
		}
		entries = append(entries, e.with(func(h *tar.Header) {
			h.ModTime = mtime.Add(time.Duration(i) * 7 * time.Second)
			h.Uname, h.Gname = "root", "root"
		}))
	}
	return entries
}

// cpu returns the time that this process has computed for.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkAdd makes the index of a layer of 60,000 files from the bytes of its
// TOC, and opens the layer.
func BenchmarkAdd(b *testing.B) {
	tar := tarOf(b, manyFiles(60_000)...)
	ours := convert(b, estargz.Options{Level: 1}, tar)
	theirs, err := stock.Build(io.NewSectionReader(bytes.NewReader(tar), 0, int64(len(tar))), stock.WithCompressionLevel(1))
	require.NoError(b, err)
	data, err := io.ReadAll(theirs)
	require.NoError(b, err)
	for name, blob := range map[string]*testBlob{"ours": ours, "stock": {key: Key{Blob: ours.key.Blob, TOC: theirs.TOCDigest()}, data: data}} {
		b.Run(name, func(b *testing.B) {
			s := openStore(b)
			start := cpu()
			for b.Loop() {
				addedTo(b, s, blob)
				b.StopTimer()
				require.NoError(b, s.Remove(blob.key))
				b.StartTimer()
			}
			b.ReportMetric(float64(cpu()-start)/float64(b.N)/1e6, "cpu-ms/op")
		})
	}
}

// BenchmarkMemory tells the memory of a layer of 100,000 files when all of it
// was looked at.
func BenchmarkMemory(b *testing.B) {
	blob := blobOf(b, estargz.Options{Level: 1}, manyFiles(100_000)...)
	for b.Loop() {
		s := openStore(b)
		before := resident(b)
		l := addedTo(b, s, blob)
		b.ReportMetric(float64(resident(b)-before)/1e6, "heap-MB")
		walk(b, l)
		b.ReportMetric(float64(resident(b)-before)/1e6, "walked-MB")
		info, err := os.Stat(l.dir + "/index")
		require.NoError(b, err)
		b.ReportMetric(float64(info.Size())/1e6, "index-MB")
	}
}

// resident returns the bytes of memory that are in use, after the garbage is
// collected.
func resident(b *testing.B) int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkLookup(b *testing.B) {
	l := addedTo(b, openStore(b), blobOf(b, estargz.Options{Level: 1}, manyFiles(60_000)...))
	dir := find(b, l, "usr/lib/python3/dist-packages")
	for b.Loop() {
		n, ok := l.Lookup(dir, "package1234")
		if !ok || l.Attr(n).Links == 0 {
			b.Fatal("lost")
		}
	}
}

func BenchmarkReadAt(b *testing.B) {
	blob := blobOf(b, estargz.Options{}, file("small", text(1, 5000)), file("large", text(2, 20<<20)))
	l := addedTo(b, openStore(b), blob)
	f := &fake{data: blob.data}
	l.Connect(f.all())
	require.NoError(b, l.Fill(b.Context()))
	for name, size := range map[string]int{"small": 5000, "large": 128 << 10} {
		n, p := find(b, l, name), make([]byte, size)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(size))
			for b.Loop() {
				_, err := l.ReadAt(context.Background(), n, p, 0)
				require.NoError(b, err)
			}
		})
	}
}

// BenchmarkFill fetches a layer from memory; bytes are those of the files.
func BenchmarkFill(b *testing.B) {
	var small []tarEntry
	for i := range 6000 {
		small = append(small, file(fmt.Sprint(i), text(uint64(i), 500+i*7919%20_000)))
	}
	for name, entries := range map[string][]tarEntry{"small": small, "large": {file("large", text(1, 64<<20))}} {
		b.Run(name, func(b *testing.B) {
			blob := blobOf(b, estargz.Options{}, entries...)
			var size int64
			for _, e := range entries {
				size += e.Size
			}
			f := &fake{data: blob.data, window: 8 << 20}
			s := openStore(b)
			b.SetBytes(size)
			for b.Loop() {
				l := addedTo(b, s, blob)
				l.Connect(f.all())
				require.NoError(b, l.Fill(b.Context()))
				b.StopTimer()
				require.NoError(b, s.Remove(blob.key))
				b.StartTimer()
			}
			b.ReportMetric(float64(len(blob.data)), "blob-bytes")
		})
	}
}
