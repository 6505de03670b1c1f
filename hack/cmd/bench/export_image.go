package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/pgzip"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/pushed"
)

// A storedImage is one in a daemon's content store.
type storedImage struct {
	blobs    string // the store's directory
	manifest ocispecs.Manifest
	config   ocispecs.Image
}

func readImage(blobs string, dgst digest.Digest) (*storedImage, error) {
	i := &storedImage{blobs: blobs}
	if err := readJSON(i.file(dgst), &i.manifest); err != nil {
		return nil, err
	}
	return i, readJSON(i.file(i.manifest.Config.Digest), &i.config)
}

func (i *storedImage) file(dgst digest.Digest) string {
	return filepath.Join(i.blobs, dgst.Algorithm().String(), dgst.Encoded())
}

func readJSON(file string, v any) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

// layers is the size of all layers in bytes, compressed.
func (i *storedImage) layers() (sum int64) {
	for _, desc := range i.manifest.Layers {
		sum += desc.Size
	}
	return sum
}

// check has the stock library verify layers of eStargz.
func (i *storedImage) check() error {
	for n, desc := range i.manifest.Layers {
		blob, err := os.ReadFile(i.file(desc.Digest))
		if err != nil {
			return err
		}
		if _, err := pushed.CheckLayer(blob, desc, i.config.RootFS.DiffIDs[n]); err != nil {
			return fmt.Errorf("layer %d: %w", n, err)
		}
	}
	return nil
}

// unpack writes the tars of gzip layers into a directory, unless it is there.
func (i *storedImage) unpack(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	}
	for _, desc := range i.manifest.Layers {
		_, err := transform(i.file(desc.Digest), filepath.Join(dir, desc.Digest.Encoded()+".tar"), func(to io.Writer, from io.Reader) error {
			z, err := gzip.NewReader(from)
			if err != nil {
				return err
			}
			_, err = io.Copy(to, z)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
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
		size, err := transform(file, file+".gz", func(to io.Writer, from io.Reader) error {
			z, err := pgzip.NewWriterLevel(to, 6)
			if err != nil {
				return err
			}
			_, err = io.Copy(z, from)
			return errors.Join(err, z.Close())
		})
		if err := errors.Join(err, os.Remove(file+".gz")); err != nil {
			return r, err
		}
		r.layers += size
	}
	r.wall, r.cpu = time.Since(start), ownTime()-before
	return r, nil
}

// transform writes one file from another, and returns its size.
func transform(source, target string, do func(io.Writer, io.Reader) error) (size int64, err error) {
	from, err := os.Open(source)
	if err != nil {
		return 0, err
	}
	defer from.Close()
	to, err := os.Create(target)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if err := do(to, from); err != nil {
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
