package inspect

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// layoutScheme begins the name of an OCI layout.
const layoutScheme = "oci-layout://"

// open finds out what a name means. A path that is clearly one, or that leads to
// a layout, wins over an image in a registry.
func open(name string, opts Options) (source, error) {
	if p, ok := strings.CutPrefix(name, layoutScheme); ok {
		return openLayout(splitLayout(p))
	}
	if isLayout(name) || filepath.IsAbs(name) || strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../") {
		return openLayout(name, "")
	}
	return openRegistry(name, opts)
}

func isLayout(name string) bool {
	info, err := os.Stat(name)
	if err == nil && info.IsDir() {
		_, err = os.Stat(filepath.Join(name, ocispecs.ImageLayoutFile))
	}
	return err == nil
}

// splitLayout divides what follows the scheme into a path and the tag or digest
// of one image. A path may have a colon itself.
func splitLayout(p string) (file, image string) {
	if _, err := os.Stat(p); err == nil {
		return p, ""
	}
	if i := strings.LastIndexByte(p, '@'); i > 0 {
		return p[:i], p[i+1:]
	}
	if i := strings.LastIndexByte(p, ':'); i > strings.LastIndexByte(p, '/') && i > 0 {
		return p[:i], p[i+1:]
	}
	return p, ""
}

// A layout is the source of an image on disk.
type layout struct {
	files files
	image string // a tag or a digest; empty for all there are
}

// files are those of a layout: a directory's, or a tar's.
type files interface {
	// open opens a regular file and tells its size.
	open(name string) (contents, int64, error)
	io.Closer
}

// contents are those of a file. They must be closed.
type contents interface {
	io.ReaderAt
	io.Closer
}

func openLayout(name, image string) (*layout, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	l := &layout{image: image}
	if info.IsDir() {
		root, err := os.OpenRoot(name)
		if err != nil {
			return nil, err
		}
		l.files = &directory{root}
		return l, nil
	}
	if !info.Mode().IsRegular() { // a named pipe would be waited for
		return nil, fmt.Errorf("%s is neither a directory nor a file", name)
	}
	if l.files, err = openArchive(name); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return l, nil
}

func (l *layout) Close() error { return l.files.Close() }

func (l *layout) fetched() *Fetched { return nil }

func (l *layout) roots(context.Context) ([]ocispecs.Descriptor, error) {
	text, err := l.read(ocispecs.ImageIndexFile, maxDocument)
	if err != nil {
		return nil, err
	}
	var index ocispecs.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, fmt.Errorf("%s: %w", ocispecs.ImageIndexFile, err)
	}
	if l.image == "" {
		return index.Manifests, nil
	}
	named := slices.DeleteFunc(slices.Clone(index.Manifests), func(d ocispecs.Descriptor) bool { return !l.means(d) })
	if len(named) == 0 {
		return nil, fmt.Errorf("%s has no image %q, only %s", ocispecs.ImageIndexFile, l.image, names(index.Manifests))
	}
	return named, nil
}

// means says whether an image is the one that was asked for. containerd adds its
// full name.
func (l *layout) means(d ocispecs.Descriptor) bool {
	return l.image == d.Digest.String() ||
		l.image == d.Annotations[ocispecs.AnnotationRefName] ||
		l.image == d.Annotations[images.AnnotationImageName]
}

func (l *layout) document(_ context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	text, err := l.read(blobName(desc.Digest), desc.Size)
	if err == nil && int64(len(text)) != desc.Size {
		err = fmt.Errorf("%s has not the %d bytes that it should have", desc.Digest, desc.Size)
	}
	return text, err
}

// read returns a whole file of up to a size.
func (l *layout) read(name string, most int64) ([]byte, error) {
	f, size, err := l.files.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > most {
		return nil, fmt.Errorf("%s: %d bytes are more than %d", name, size, most)
	}
	text, err := io.ReadAll(io.NewSectionReader(f, 0, size))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return text, nil
}

// blobName is where a layout has what has a valid digest.
func blobName(d digest.Digest) string {
	return path.Join(ocispecs.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func (l *layout) blob(desc ocispecs.Descriptor) ranged {
	return fileRange{l.files, blobName(desc.Digest)}
}

// A fileRange is a blob in a layout.
type fileRange struct {
	files files
	name  string
}

func (r fileRange) Range(_ context.Context, off, n int64) (io.ReadCloser, error) {
	f, size, err := r.files.open(r.name)
	if err != nil {
		return nil, err
	}
	if off+n > size {
		return nil, errors.Join(fmt.Errorf("%s: it ends at %d, before %d", r.name, size, off+n), f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, off, n), f}, nil
}

// A directory keeps symlinks in a layout from leading out of it.
type directory struct{ root *os.Root }

func (d *directory) open(name string) (contents, int64, error) {
	info, err := d.root.Stat(name)
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	if err != nil {
		return nil, 0, err
	}
	f, err := d.root.Open(name)
	return f, info.Size(), err
}

func (d *directory) Close() error { return d.root.Close() }

// maxFiles is how many files an archive may have.
const maxFiles = 100_000

// An archive is a layout in a tar that is not compressed, as the exporters oci
// and docker write it.
type archive struct {
	tar   *os.File
	parts map[string]*io.SectionReader
}

func openArchive(name string) (_ *archive, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	a := &archive{tar: f, parts: map[string]*io.SectionReader{}}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("it is neither a directory nor a tar: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if len(a.parts) == maxFiles {
			return nil, fmt.Errorf("more than %d files", maxFiles)
		}
		// The reader takes no more of the file than the headers.
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		a.parts[path.Clean(h.Name)] = io.NewSectionReader(f, at, h.Size)
	}
	if a.parts[ocispecs.ImageIndexFile] == nil {
		return nil, fmt.Errorf("it has no %s: an archive of Docker before version 25 is no OCI layout", ocispecs.ImageIndexFile)
	}
	return a, nil
}

func (a *archive) open(name string) (contents, int64, error) {
	part := a.parts[name]
	if part == nil {
		return nil, 0, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return struct {
		io.ReaderAt
		io.Closer
	}{part, io.NopCloser(nil)}, part.Size(), nil
}

func (a *archive) Close() error { return a.tar.Close() }
