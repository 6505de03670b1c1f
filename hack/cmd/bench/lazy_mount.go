package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/lazyfs"
	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// mounting measures what it takes to mount layers of many files, once the bytes
// of the TOC are here, and their memory when all files were looked at.
func mounting(ctx context.Context, c *config) error {
	fmt.Print("| a layer is mounted | milliseconds | MB of memory | MB for 100,000 files |\n|---|---:|---:|---:|\n")
	for _, files := range []int{60_000, 100_000} {
		var runs []mountRun
		for range c.runs {
			run, err := mountLayer(ctx, c, files)
			if err != nil {
				return fmt.Errorf("mount %d files: %w", files, err)
			}
			runs = append(runs, run)
		}
		took := median(runs, func(r mountRun) time.Duration { return r.took })
		memory := float64(median(runs, func(r mountRun) int64 { return r.memory })) / 1e6
		fmt.Printf("| %d files | %.0f | %.1f | %.1f |\n", files, float64(took.Microseconds())/1000, memory, memory*100_000/float64(files))
	}
	fmt.Println()
	return nil
}

type mountRun struct {
	took   time.Duration
	memory int64 // bytes of this process that are resident more than before
}

func mountLayer(ctx context.Context, c *config, files int) (run mountRun, err error) {
	dir, err := os.MkdirTemp(c.work, "mounting")
	if err != nil {
		return run, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	key, size, tail, err := manyFiles(ctx, files)
	if err != nil {
		return run, err
	}
	before, err := residentMemory()
	if err != nil {
		return run, err
	}
	start := time.Now()
	s, err := store.Open(filepath.Join(dir, "store"), store.Options{})
	if err != nil {
		return run, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.Add(ctx, key, size, tail, nil); err != nil {
		return run, err
	}
	layer, err := s.Layer(key)
	if err != nil {
		return run, err
	}
	at := filepath.Join(dir, "layer")
	if err := os.Mkdir(at, 0o700); err != nil {
		return run, err
	}
	server, err := lazyfs.Mount(at, layer, lazyfs.Options{})
	if err != nil {
		return run, err
	}
	defer func() { err = errors.Join(err, server.Unmount()) }()
	run.took = time.Since(start)
	if err := filepath.WalkDir(at, func(string, os.DirEntry, error) error { return nil }); err != nil {
		return run, err
	}
	after, err := residentMemory()
	run.memory = after - before
	return run, err
}

// manyFiles writes a layer of so many small files, and returns the end of the
// blob that has its TOC.
func manyFiles(ctx context.Context, files int) (key store.Key, size int64, tail []byte, err error) {
	pipe, w := io.Pipe()
	go func() { w.CloseWithError(writeManyFiles(w, files)) }()
	var blob bytes.Buffer
	info, err := estargz.Write(ctx, &blob, pipe, estargz.Options{Level: 1})
	if err != nil {
		return key, 0, nil, err
	}
	key = store.Key{Blob: info.Digest, TOC: info.TOCDigest}
	at, err := estargz.FindTOC(blob.Bytes(), info.Size)
	if err != nil {
		return key, 0, nil, err
	}
	return key, info.Size, bytes.Clone(blob.Bytes()[at:]), nil
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

// residentMemory is that of this process without garbage, the pages of mapped
// files included.
func residentMemory() (int64, error) {
	runtime.GC()
	debug.FreeOSMemory()
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	var pages, resident int64
	_, err = fmt.Sscan(string(statm), &pages, &resident)
	return resident * int64(os.Getpagesize()), err
}
