package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// A Range returns n bytes of a blob from an offset.
type Range func(ctx context.Context, off, n int64) (io.ReadCloser, error)

// Add makes a layer of a blob of size bytes, if it is not there yet. The tail
// is the end of the blob, with the footer at least; what it lacks of the TOC is
// asked of rest. The TOC must have the digest of the key, and nothing in it may
// be such that the layer would differ from the unpacked one.
func (s *Store) Add(ctx context.Context, key Key, size int64, tail []byte, rest Range) error {
	name, err := key.dir()
	if err == nil {
		dir := filepath.Join(s.layersDir, name)
		err = s.once(ctx, key, func() error { return s.add(ctx, dir, key, size, tail, rest) })
	}
	if err != nil {
		return fmt.Errorf("store: layer %s: %w", key.Blob, err)
	}
	return nil
}

// MissingTOC returns the range that the tail of a blob lacks of its TOC. It is
// empty if nothing is missing, or no TOC is known of: Add says so.
func MissingTOC(tail []byte, size int64) (off, n int64) {
	here := size - int64(len(tail))
	at, err := estargz.FindTOC(tail, size)
	if err != nil || at >= here {
		return here, 0
	}
	return at, here - at
}

func (s *Store) add(ctx context.Context, dir string, key Key, size int64, tail []byte, rest Range) error {
	_, err := s.Layer(key)
	if errors.Is(err, errIndex) || errors.Is(err, errVersion) {
		err = errors.Join(s.remove(key), fs.ErrNotExist)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	x, err := s.build(ctx, key, size, tail, rest)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(s.tmpDir, "add-")
	if err != nil {
		return err
	}
	if err = s.writeLayer(tmp, x); err == nil {
		if err = os.Rename(tmp, dir); err == nil {
			return syncFile(s.layersDir)
		}
	}
	return errors.Join(err, os.RemoveAll(tmp))
}

// writeLayer makes the files of a layer that has no contents yet.
func (s *Store) writeLayer(dir string, x *index) error {
	f, err := os.OpenFile(filepath.Join(dir, "index"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(x.writeTo(f), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	if err := createPresence(filepath.Join(dir, "present"), len(x.chunks), s.bootID); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "large"), 0o700); err != nil {
		return err
	}
	return syncFile(dir)
}

func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// build makes the index. As many are made at once as there are cores, so that
// their memory is bounded too.
func (s *Store) build(ctx context.Context, key Key, size int64, tail []byte, rest Range) (*index, error) {
	at, err := estargz.FindTOC(tail, size)
	if err != nil {
		return nil, err
	}
	toc, err := tocReader(ctx, at, size, tail, rest)
	if err != nil {
		return nil, err
	}
	defer toc.Close()
	if err := s.building.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer s.building.Release(1)
	b := newBuilder(at, s.large)
	if err := estargz.ReadTOC(toc, key.TOC, func(e *estargz.Entry) error {
		if err := b.add(e); err != nil {
			return err
		}
		return ctx.Err()
	}); err != nil {
		return nil, err
	}
	x, err := b.finish(size)
	if err != nil {
		return nil, fmt.Errorf("estargz: TOC: %w", err)
	}
	return x, nil
}

// tocReader reads the blob from where the TOC starts.
func tocReader(ctx context.Context, at, size int64, tail []byte, rest Range) (io.ReadCloser, error) {
	here := size - int64(len(tail))
	if at >= here {
		return io.NopCloser(bytes.NewReader(tail[at-here:])), nil
	}
	r, err := rest(ctx, at, here-at)
	if err != nil {
		return nil, fmt.Errorf("TOC: %w", err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(r, bytes.NewReader(tail)), r}, nil
}
