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

// A Range returns n bytes of a blob from an offset, or fewer where the blob ends.
type Range func(ctx context.Context, off, n int64) (io.ReadCloser, error)

// Add makes a layer of a blob of size bytes, if it is not there yet. The tail
// is the end of the blob, with the footer at least; what it lacks of the TOC is
// asked of rest. The TOC must have the digest of the key, even if the layer is
// there, and nothing in it may be such that the layer would differ from the
// unpacked one.
func (s *Store) Add(ctx context.Context, key Key, size int64, tail []byte, rest Range) error {
	name, err := key.dir()
	if err == nil {
		err = s.addIn(ctx, filepath.Join(s.layersDir, name), key, size, tail, rest)
	}
	if err != nil {
		return fmt.Errorf("store: layer %s: %w", key.Blob, err)
	}
	return nil
}

// addIn has all of the TOC here before it takes a turn: a registry that is slow
// must not hold up those who have it from another one, or make other indexes.
func (s *Store) addIn(ctx context.Context, dir string, key Key, size int64, tail []byte, rest Range) error {
	at, err := estargz.FindTOC(tail, size)
	if err != nil {
		return err
	}
	toc, err := s.bring(ctx, at, size, tail, rest)
	if err != nil {
		return err
	}
	defer toc.Close()
	there := false
	err = s.once(ctx, key, func() error {
		_, err := s.Layer(key)
		if there = err == nil; there {
			return nil
		}
		if errors.Is(err, errIndex) || errors.Is(err, errVersion) {
			err = errors.Join(s.remove(key), fs.ErrNotExist)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return s.add(ctx, dir, key, at, toc)
	})
	if there {
		return readTOC(ctx, key, at, toc, func(*estargz.Entry) error { return nil })
	}
	return err
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

func (s *Store) add(ctx context.Context, dir string, key Key, payload int64, toc io.Reader) error {
	x, err := s.build(ctx, key, payload, toc)
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
func (s *Store) build(ctx context.Context, key Key, payload int64, toc io.Reader) (*index, error) {
	if err := s.building.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer s.building.Release(1)
	b := newBuilder(payload, s.large)
	if err := readTOC(ctx, key, payload, toc, b.add); err != nil {
		return nil, err
	}
	x, err := b.finish()
	if err != nil {
		return nil, fmt.Errorf("estargz: TOC: %w", err)
	}
	return x, nil
}

func readTOC(ctx context.Context, key Key, payload int64, toc io.Reader, each func(*estargz.Entry) error) error {
	return estargz.ReadTOC(toc, payload, key.TOC, func(e *estargz.Entry) error {
		if err := each(e); err != nil {
			return err
		}
		return ctx.Err()
	})
}

// maxTOCs is how many bytes of TOCs, compressed, may be in files at a time.
const maxTOCs = 1 << 30

var errTOCs = fmt.Errorf("the TOCs that are being read take more than %d MB", maxTOCs>>20)

// A toc is the end of a blob from its TOC on: a file and the tail.
type toc struct {
	io.Reader
	file  *os.File // nil if the tail has all
	store *Store
	taken int64 // of the store's room for TOCs
}

func (t *toc) Close() error {
	t.store.tocs.Add(t.taken)
	if t.file == nil {
		return nil
	}
	return t.file.Close()
}

// Write is of the file.
func (t *toc) Write(p []byte) (int, error) {
	n := int64(len(p))
	if err := t.store.checkSpace(n); err != nil {
		return 0, err
	}
	if t.store.tocs.Add(-n) < 0 {
		t.store.tocs.Add(n)
		return 0, errTOCs
	}
	t.taken += n
	return t.file.Write(p)
}

// bring returns the blob from where the TOC starts. What the tail lacks comes
// into a file without a name.
func (s *Store) bring(ctx context.Context, at, size int64, tail []byte, rest Range) (*toc, error) {
	t := &toc{store: s}
	here := size - int64(len(tail))
	if at >= here {
		t.Reader = bytes.NewReader(tail[at-here:])
		return t, nil
	}
	err := t.fill(ctx, at, here-at, rest)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("TOC: %w", err), t.Close())
	}
	t.Reader = io.MultiReader(t.file, bytes.NewReader(tail))
	return t, nil
}

func (t *toc) fill(ctx context.Context, at, n int64, rest Range) error {
	r, err := rest(ctx, at, n)
	if err != nil {
		return err
	}
	defer r.Close()
	if t.file, err = os.CreateTemp(t.store.tmpDir, "toc-"); err != nil {
		return err
	}
	if err := os.Remove(t.file.Name()); err != nil {
		return err
	}
	if _, err := io.CopyN(t, r, n); err != nil {
		return noEOF(err)
	}
	_, err = t.file.Seek(0, io.SeekStart)
	return err
}
