package inspect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// zstdFooterSize is that of zstd:chunked: a frame header of 8 bytes and 64 that
// end in zstdMagic. Older writers have 40, with the same end.
const (
	zstdFooterSize = 72
	zstdMagic      = "GNUlInUx"
)

// legacyFooterSize is that of stargz.
const legacyFooterSize = 47

func newLayer(desc ocispecs.Descriptor) *Layer {
	return &Layer{
		Digest:      desc.Digest,
		Size:        desc.Size,
		MediaType:   desc.MediaType,
		Format:      formatOf(desc.MediaType),
		Prioritized: []File{},
		annotation:  digest.Digest(desc.Annotations[estargz.TOCDigestAnnotation]),
	}
}

// formatOf is what the media type tells. OCI's end in "+gzip", Docker's in
// ".gzip".
func formatOf(mediaType string) Format {
	for _, f := range []Format{Gzip, Zstd, Tar} {
		if strings.HasSuffix(mediaType, "+"+string(f)) || strings.HasSuffix(mediaType, "."+string(f)) {
			return f
		}
	}
	return Other
}

// distributed says whether registries have the blobs of a media type.
func distributed(mediaType string) bool {
	return !strings.Contains(mediaType, "nondistributable") && !strings.Contains(mediaType, ".foreign.")
}

// An ending is a blob with its last bytes.
type ending struct {
	blob ranged
	tail []byte
}

// readFooter finds out the format of the layer. It returns the end of a layer
// with a TOC, and nil for every other one.
func (l *Layer) readFooter(ctx context.Context, src source) *ending {
	if l.Format != Gzip && l.Format != Zstd || !distributed(l.MediaType) {
		return nil
	}
	e := &ending{blob: src.blob(ocispecs.Descriptor{Digest: l.Digest, Size: l.Size})}
	n := min(l.Size, zstdFooterSize)
	tail, err := e.blob.Range(ctx, l.Size-n, n)
	if err == nil {
		e.tail, err = io.ReadAll(io.LimitReader(tail, n))
		err = errors.Join(err, tail.Close())
	}
	if err == nil && int64(len(e.tail)) < n {
		err = fmt.Errorf("the blob ends before its %d bytes", l.Size)
	}
	if err != nil {
		l.Error = err.Error()
		return nil
	}
	if l.Format == Zstd {
		if bytes.HasSuffix(e.tail, []byte(zstdMagic)) {
			l.Format = ZstdChunked
		}
		return nil
	}
	offset, err := estargz.FindTOC(e.tail, l.Size)
	switch {
	case errors.Is(err, estargz.ErrExternalTOC):
		l.Format = ExternalTOC
		return nil
	case err != nil && l.annotation == "":
		return nil // a layer like any other
	case err != nil:
		l.Error = fmt.Sprintf("it is annotated with the digest of a TOC, and has none: %v", err)
		return nil
	}
	l.Format = EStargz
	l.TOC = &TOC{Offset: offset, FooterSize: int64(estargz.FooterSize), Annotation: l.annotation}
	if _, err := estargz.FindTOC(e.tail[max(0, len(e.tail)-legacyFooterSize):], l.Size); err == nil {
		l.Format = Stargz
		l.TOC.FooterSize = legacyFooterSize
	}
	l.TOC.Size = l.Size - l.TOC.FooterSize - offset
	return e
}

// readTOC opens the layer. A TOC that is not the annotated one is not looked at,
// since no node would mount the layer.
func (l *Layer) readTOC(ctx context.Context, e *ending) {
	blob := &sequential{
		open: func(off, n int64) (io.ReadCloser, error) { return e.blob.Range(ctx, off, n) },
		size: l.Size,
		tail: e.tail,
		left: maxTOC,
	}
	defer blob.close()
	r, err := estargz.Open(blob, l.Size, estargz.OpenOptions{TOCDigest: l.annotation, Dense: true})
	if err != nil {
		l.Error = err.Error()
		return
	}
	l.reader = r
	l.TOC.Digest = r.TOCDigest()
	l.TOC.Entries = len(r.Entries())
	l.TOC.Verified = l.annotation != ""
}

// A sequential blob is read from front to back, by ranges that go on up to the
// tail, which is here. It is for one goroutine.
type sequential struct {
	open func(off, n int64) (io.ReadCloser, error)
	size int64
	tail []byte
	left int64 // how much may be fetched

	stream io.ReadCloser
	at     int64 // where the stream is
}

var errTOCSize = fmt.Errorf("the compressed TOC is larger than %d bytes", maxTOC)

func (s *sequential) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = s.read(p[n:], off+int64(n))
		n += m
	}
	return n, err
}

func (s *sequential) read(p []byte, off int64) (n int, err error) {
	start := s.size - int64(len(s.tail))
	if off >= s.size {
		return 0, io.EOF
	}
	if off >= start {
		return copy(p, s.tail[off-start:]), nil
	}
	if s.stream == nil || s.at != off {
		s.close()
		if s.stream, err = s.open(off, start-off); err != nil {
			s.stream = nil
			return 0, err
		}
		s.at = off
	}
	n, err = s.stream.Read(p[:min(int64(len(p)), start-off)])
	s.at += int64(n)
	if s.left -= int64(n); s.left < 0 {
		return n, errTOCSize
	}
	if err == io.EOF {
		err = nil
		if s.at < start && n == 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

func (s *sequential) close() {
	if s.stream != nil {
		s.stream.Close()
		s.stream = nil
	}
}

// describe fills in what the TOC tells of the layer by itself.
func (l *Layer) describe() {
	end := l.findLandmark()
	var open *File // whose chunks follow
	for i, e := range l.reader.Entries() {
		if e.Type != estargz.TypeChunk {
			open = nil
		}
		if open != nil {
			open.End = e.MemberEnd()
		}
		if isWhiteout(e.Name) {
			l.Whiteouts++
			continue
		}
		if e.Type != estargz.TypeReg || isLandmark(e.Name) {
			continue
		}
		if live, _ := l.reader.Lookup(e.Name); live == e {
			l.Files++
			l.FileBytes = sum(l.FileBytes, e.Size)
		}
		if i < end {
			f := File{Path: e.Name, Size: e.Size}
			if e.HasContents() {
				f.Offset, f.End, f.Shared = e.Offset, e.MemberEnd(), e.InnerOffset > 0
			}
			l.Prioritized = append(l.Prioritized, f)
			l.PrioritizedBytes = sum(l.PrioritizedBytes, e.Size)
			open = &l.Prioritized[len(l.Prioritized)-1]
		}
	}
}

// findLandmark returns how many entries of the TOC stand before the landmark,
// zero if nothing is prioritized. As for stargz-snapshotter, the landmark that
// forbids to prefetch counts more than the other.
func (l *Layer) findLandmark() int {
	l.Landmark = NoLandmark
	if _, ok := l.reader.Lookup(estargz.NoPrefetchLandmark); ok {
		l.Landmark = NoPrefetch
		return 0
	}
	landmark, ok := l.reader.Lookup(estargz.PrefetchLandmark)
	if !ok {
		return 0
	}
	l.Landmark = Prefetch
	if landmark.HasContents() { // else nothing has checked its offset
		l.PrefetchBytes = landmark.Offset
	}
	for i, e := range l.reader.Entries() {
		if e == landmark {
			return i
		}
	}
	return 0
}

func isLandmark(name string) bool {
	return name == estargz.PrefetchLandmark || name == estargz.NoPrefetchLandmark
}

// What layers take away from those below them.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

func isWhiteout(name string) bool { return strings.HasPrefix(path.Base(name), whiteout) }
