package lazyfs_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazyfs"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// BenchmarkMount makes a layer of many files of the bytes of its TOC, and
// mounts it. Its memory is what the process has resident more than before,
// pages of mapped files included, when all files were looked at.
func BenchmarkMount(b *testing.B) {
	for _, files := range []int{60_000, 100_000} {
		b.Run(fmt.Sprintf("files=%d", files), func(b *testing.B) {
			key, size, tail := manyFiles(b, files)
			before := residentMemory(b)
			var memory int64
			for b.Loop() {
				s, err := store.Open(filepath.Join(b.TempDir(), "store"), store.Options{})
				require.NoError(b, err)
				require.NoError(b, s.Add(b.Context(), key, size, tail, nil))
				layer, err := s.Layer(key)
				require.NoError(b, err)
				at := b.TempDir()
				server, err := lazyfs.Mount(at, layer, lazyfs.Options{})
				require.NoError(b, err)
				b.StopTimer()
				require.NoError(b, filepath.WalkDir(at, func(string, fs.DirEntry, error) error { return nil }))
				memory = max(memory, residentMemory(b)-before)
				require.NoError(b, server.Unmount())
				require.NoError(b, s.Close())
				b.StartTimer()
			}
			b.ReportMetric(float64(memory)/1e6, "MB")
		})
	}
}

// manyFiles writes a layer of so many small files, and returns the end of the
// blob that has its TOC.
func manyFiles(b *testing.B, files int) (key store.Key, size int64, tail []byte) {
	pipe, w := io.Pipe()
	go func() { w.CloseWithError(writeManyFiles(w, files)) }()
	var blob bytes.Buffer
	info, err := estargz.Write(b.Context(), &blob, pipe, estargz.Options{Level: 1})
	require.NoError(b, err)
	at, err := estargz.FindTOC(blob.Bytes(), info.Size)
	require.NoError(b, err)
	return store.Key{Blob: info.Digest, TOC: info.TOCDigest}, info.Size, bytes.Clone(blob.Bytes()[at:])
}

func writeManyFiles(w io.Writer, files int) error {
	out := tar.NewWriter(w)
	for n := range files {
		name := fmt.Sprintf("usr/lib/python3/dist-packages/package%d/module_%d.py", n/50, n)
		content := fmt.Sprintf("# module %d of a package\nVALUE = %d\n", n, n*7919)
		if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1700000000, 0)}); err != nil {
			return err
		}
		if _, err := io.WriteString(out, content); err != nil {
			return err
		}
	}
	return out.Close()
}

func residentMemory(b *testing.B) int64 {
	runtime.GC()
	debug.FreeOSMemory()
	statm, err := os.ReadFile("/proc/self/statm")
	require.NoError(b, err)
	var pages, resident int64
	_, err = fmt.Sscan(string(statm), &pages, &resident)
	require.NoError(b, err)
	return resident * int64(os.Getpagesize())
}
