package pushed

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Layer is an eStargz layer that passed every check.
type Layer struct {
	Descriptor       ocispecs.Descriptor
	TOCDigest        digest.Digest
	Files            int // regular files
	Entries          int // of the tar, without the TOC and the landmarks
	Chunks           int
	UncompressedSize int64 // in bytes, TOC included
}

// CheckEStargz reads all layers of the image and checks each of them with
// CheckLayer.
func (im *Image) CheckEStargz(ctx context.Context) ([]*Layer, error) {
	if len(im.Manifest.Layers) != len(im.Config.RootFS.DiffIDs) {
		return nil, fmt.Errorf("%d layers but %d diffIDs", len(im.Manifest.Layers), len(im.Config.RootFS.DiffIDs))
	}
	var layers []*Layer
	for i, desc := range im.Manifest.Layers {
		blob, err := im.Blob(ctx, desc)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		layer, err := CheckLayer(blob, desc, im.Config.RootFS.DiffIDs[i])
		if err != nil {
			return nil, fmt.Errorf("layer %d %s: %w", i, desc.Digest, err)
		}
		layers = append(layers, layer)
	}
	return layers, nil
}

// CheckLayer checks that the stock library opens the blob and accepts its TOC
// with the descriptor's annotation, that every chunk has the digest and the
// place that the TOC says, and that the same blob is an ordinary gzip layer:
// its tar has the diffID and the size that image and descriptor say, and the
// very entries of the TOC. An empty diffID is not compared.
func CheckLayer(blob []byte, desc ocispecs.Descriptor, diffID digest.Digest) (*Layer, error) {
	if desc.Size != int64(len(blob)) {
		return nil, fmt.Errorf("descriptor says %d bytes, blob has %d", desc.Size, len(blob))
	}
	toc, err := digest.Parse(desc.Annotations[estargz.TOCJSONDigestAnnotation])
	if err != nil {
		return nil, fmt.Errorf("annotation %s: %w", estargz.TOCJSONDigestAnnotation, err)
	}
	reader, err := estargz.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
	if err != nil {
		return nil, fmt.Errorf("stock estargz.Open: %w", err)
	}
	verifier, err := reader.VerifyTOC(toc)
	if err != nil {
		return nil, fmt.Errorf("stock VerifyTOC: %w", err)
	}
	layer := &Layer{Descriptor: desc, TOCDigest: toc}
	headers, err := layer.checkTar(blob, diffID, reader, verifier)
	if err != nil {
		return nil, err
	}
	all, err := TOC(blob)
	if err != nil {
		return nil, err
	}
	entries := slices.DeleteFunc(all, func(e *estargz.TOCEntry) bool { return e.Type == "chunk" || isMeta(e.Name) })
	if err := sameEntries(headers, entries); err != nil {
		return nil, err
	}
	return layer, layer.checkSizeAnnotation()
}

// Unpack returns the tar of an eStargz blob without its TOC, by the stock
// library.
func Unpack(blob []byte) ([]byte, error) {
	r, err := estargz.Unpack(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))), new(estargz.GzipDecompressor))
	if err != nil {
		return nil, fmt.Errorf("stock estargz.Unpack: %w", err)
	}
	defer r.Close()
	return io.ReadAll(r)
}

// checkTar reads the blob as one who knows nothing of eStargz, and compares
// each entry to the TOC's. It returns the entries.
func (l *Layer) checkTar(blob []byte, diffID digest.Digest, toc *estargz.Reader, v estargz.TOCEntryVerifier) (all []*tar.Header, err error) {
	gz, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		return nil, err
	}
	sum := digest.Canonical.Digester()
	counted := &counter{r: io.TeeReader(gz, sum.Hash())}
	for tr := tar.NewReader(counted); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("tar: %w", err)
		}
		if isMeta(hdr.Name) {
			continue
		}
		if err := l.checkEntry(hdr, toc, v); err != nil {
			return nil, fmt.Errorf("entry %q: %w", hdr.Name, err)
		}
		all = append(all, hdr)
	}
	// The end of the original tar ends the loop above; the TOC follows it.
	if _, err := io.Copy(io.Discard, counted); err != nil {
		return nil, err
	}
	if diffID != "" && sum.Digest() != diffID {
		return nil, fmt.Errorf("uncompressed digest is %s, the image config says %s", sum.Digest(), diffID)
	}
	l.UncompressedSize = counted.n
	return all, nil
}

// TOC returns the entries as the TOC has them: the stock reader shows the last
// one of a name alone, and what a hard link leads to in its place.
func TOC(blob []byte) ([]*estargz.TOCEntry, error) {
	sr := io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob)))
	at, footer, err := estargz.OpenFooter(sr)
	if err != nil {
		return nil, fmt.Errorf("stock OpenFooter: %w", err)
	}
	toc, _, err := new(estargz.GzipDecompressor).ParseTOC(io.NewSectionReader(sr, at, sr.Size()-at-footer))
	if err != nil {
		return nil, fmt.Errorf("stock ParseTOC: %w", err)
	}
	return toc.Entries, nil
}

// sameEntries compares names and targets one by one: the TOC has every entry of
// the tar, in its order, and no other.
func sameEntries(headers []*tar.Header, entries []*estargz.TOCEntry) error {
	for i, e := range entries {
		if i == len(headers) {
			return fmt.Errorf("entry %q of the TOC is not in the tar", e.Name)
		}
		hdr := headers[i]
		if clean(tocName(hdr.Name)) != clean(e.Name) {
			return fmt.Errorf("entry %d is %q in the tar and %q in the TOC", i, hdr.Name, e.Name)
		}
		if link := hdr.Typeflag == tar.TypeLink; link != (e.Type == "hardlink") || link && clean(tocName(hdr.Linkname)) != clean(e.LinkName) {
			return fmt.Errorf("entry %q links to %q in the tar, and is a %s to %q in the TOC", hdr.Name, hdr.Linkname, e.Type, e.LinkName)
		}
	}
	if len(headers) > len(entries) {
		return fmt.Errorf("entry %q of the tar is not in the TOC", headers[len(entries)].Name)
	}
	return nil
}

func clean(name string) string { return path.Clean("/" + name) }

func (l *Layer) checkEntry(hdr *tar.Header, toc *estargz.Reader, v estargz.TOCEntryVerifier) error {
	l.Entries++
	e, ok := toc.Lookup(tocName(hdr.Name))
	if !ok {
		return errors.New("not in the TOC")
	}
	if hdr.Typeflag == tar.TypeLink {
		// The stock reader returns the entry that the link leads to. The links
		// themselves are compared by sameEntries.
		return nil
	}
	if err := sameAttributes(hdr, e); err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeReg {
		return nil
	}
	l.Files++
	return l.checkChunks(hdr, toc, v)
}

// checkChunks reads a file chunk by chunk, as a snapshotter does.
func (l *Layer) checkChunks(hdr *tar.Header, toc *estargz.Reader, v estargz.TOCEntryVerifier) error {
	if hdr.Size == 0 {
		return nil
	}
	name := tocName(hdr.Name)
	file, err := toc.OpenFile(name)
	if err != nil {
		return err
	}
	for offset := int64(0); offset < hdr.Size; {
		chunk, ok := toc.ChunkEntryForOffset(name, offset)
		if !ok || chunk.ChunkOffset != offset || chunk.ChunkSize <= 0 || chunk.ChunkSize > hdr.Size-offset {
			return fmt.Errorf("no chunk at offset %d", offset)
		}
		verifier, err := v.Verifier(chunk)
		if err != nil {
			return err
		}
		// In one piece: the stock reader decompresses from the start of the
		// chunk for every read.
		content := make([]byte, chunk.ChunkSize)
		if _, err := file.ReadAt(content, offset); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("chunk at offset %d: %w", offset, err)
		}
		verifier.Write(content)
		if !verifier.Verified() {
			return fmt.Errorf("chunk at offset %d has another digest than %s", offset, chunk.ChunkDigest)
		}
		offset += chunk.ChunkSize
		l.Chunks++
	}
	return nil
}

const uncompressedSizeAnnotation = "io.containers.estargz.uncompressed-size"

// The size is for readers of containers/storage, which do without when it is
// missing.
func (l *Layer) checkSizeAnnotation() error {
	s, ok := l.Descriptor.Annotations[uncompressedSizeAnnotation]
	if !ok {
		return nil
	}
	if n, err := strconv.ParseInt(s, 10, 64); err != nil || n != l.UncompressedSize {
		return fmt.Errorf("annotation %s is %q, the layer has %d bytes", uncompressedSizeAnnotation, s, l.UncompressedSize)
	}
	return nil
}

func isMeta(name string) bool {
	switch name {
	case estargz.TOCTarName, estargz.PrefetchLandmark, estargz.NoPrefetchLandmark:
		return true
	}
	return false
}

// sameAttributes compares what a tar header and a TOC entry both say.
func sameAttributes(hdr *tar.Header, e *estargz.TOCEntry) error {
	types := map[byte]string{
		tar.TypeReg: "reg", tar.TypeDir: "dir", tar.TypeSymlink: "symlink",
		tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo",
	}
	for _, field := range []struct {
		name       string
		inTar, toc any
	}{
		{"type", types[hdr.Typeflag], e.Type},
		{"size", hdr.Size, e.Size},
		{"link", hdr.Linkname, e.LinkName},
		{"uid", hdr.Uid, e.UID},
		{"gid", hdr.Gid, e.GID},
		{"user", hdr.Uname, e.Uname},
		{"group", hdr.Gname, e.Gname},
		{"device major", int(hdr.Devmajor), e.DevMajor},
		{"device minor", int(hdr.Devminor), e.DevMinor},
		{"mode", hdr.FileInfo().Mode(), e.Stat().Mode()},
		{"time", hdr.ModTime.Unix(), modTime(e)},
	} {
		if field.inTar != field.toc {
			return fmt.Errorf("%s is %v in the tar and %v in the TOC", field.name, field.inTar, field.toc)
		}
	}
	inTOC := map[string]string{}
	for k, v := range e.Xattrs {
		inTOC[k] = string(v)
	}
	if inTar := xattrs(hdr); !maps.Equal(inTar, inTOC) {
		return fmt.Errorf("xattrs are %q in the tar and %q in the TOC", inTar, inTOC)
	}
	return nil
}

// modTime is in seconds since 1970, which is what a TOC means by no time.
func modTime(e *estargz.TOCEntry) int64 {
	if e.ModTime().IsZero() {
		return 0
	}
	return e.ModTime().Unix()
}

// tocName is the name as JSON can hold it: bytes that are not UTF-8 are lost,
// each replaced by U+FFFD.
func tocName(name string) string {
	return string([]rune(name))
}

func xattrs(hdr *tar.Header) map[string]string {
	m := map[string]string{}
	for k, v := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			m[name] = v
		}
	}
	return m
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
