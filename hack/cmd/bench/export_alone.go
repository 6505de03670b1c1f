package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/pgzip"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// unpackTars writes the tars of an image's gzip layers into a directory, unless
// it is there.
func unpackTars(blobs string, dgst digest.Digest, dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var manifest ocispecs.Manifest
	if err := readJSON(blobs, dgst, &manifest); err != nil {
		return err
	}
	for _, desc := range manifest.Layers {
		if err := unpackTar(blobFile(blobs, desc.Digest), filepath.Join(dir, desc.Digest.Encoded()+".tar")); err != nil {
			return err
		}
	}
	return nil
}

func unpackTar(blob, file string) error {
	from, err := os.Open(blob)
	if err != nil {
		return err
	}
	defer from.Close()
	z, err := gzip.NewReader(from)
	if err != nil {
		return err
	}
	to, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, z)
	return errors.Join(err, to.Close())
}

// compressAlone compresses the tars as fast as pgzip does, with nothing else to
// do: no TOC, no digest, no reading of a snapshot.
func compressAlone(tars string) (r result, err error) {
	files, err := filepath.Glob(filepath.Join(tars, "*.tar"))
	if err != nil {
		return r, err
	}
	unix.Sync()
	before, start := ownTime(), time.Now()
	for _, file := range files {
		size, err := compressFile(file)
		if err != nil {
			return r, err
		}
		r.layers += size
	}
	r.wall, r.cpu = time.Since(start), ownTime()-before
	return r, nil
}

func compressFile(name string) (size int64, err error) {
	from, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer from.Close()
	to, err := os.Create(name + ".gz")
	if err != nil {
		return 0, err
	}
	defer os.Remove(to.Name())
	defer to.Close()
	z, err := pgzip.NewWriterLevel(to, 6)
	if err != nil {
		return 0, err
	}
	if _, err := io.Copy(z, from); err != nil {
		return 0, err
	}
	if err := z.Close(); err != nil {
		return 0, err
	}
	return to.Seek(0, io.SeekCurrent)
}

// ownTime is that of the processors for this process.
func ownTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
