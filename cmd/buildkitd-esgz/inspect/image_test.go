package inspect

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/platforms"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// A node is an entry of a layer's tar.
type node struct {
	header tar.Header
	data   []byte
}

// file has contents that depend on what they are called by, and do not
// compress.
func file(name string, size int, contents string) node {
	var seed [32]byte
	copy(seed[:], contents)
	data := make([]byte, size)
	rand.NewChaCha8(seed).Read(data)
	return node{tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(size), Mode: 0o644}, data}
}

func dir(name string) node {
	return node{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, nil}
}

func symlink(name, to string) node {
	return node{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}, nil}
}

func hardlink(name, to string) node {
	return node{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to, Mode: 0o644}, nil}
}

func tarOf(t testing.TB, nodes ...node) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range nodes {
		n.header.ModTime = time.Unix(1700000000, 0)
		require.NoError(t, w.WriteHeader(&n.header))
		_, err := w.Write(n.data)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// A packed layer is one as a manifest names it.
type packed struct {
	data        []byte
	mediaType   string
	annotations map[string]string
	createdBy   string
}

// by says which instruction made the layer.
func (b packed) by(instruction string) packed {
	b.createdBy = instruction
	return b
}

func annotated(data []byte, toc digest.Digest) packed {
	return packed{data: data, mediaType: ocispecs.MediaTypeImageLayerGzip,
		annotations: map[string]string{estargz.TOCDigestAnnotation: toc.String()}}
}

func eStargz(t testing.TB, opts estargz.Options, nodes ...node) packed {
	t.Helper()
	var b bytes.Buffer
	info, err := estargz.Write(t.Context(), &b, bytes.NewReader(tarOf(t, nodes...)), opts)
	require.NoError(t, err)
	return annotated(b.Bytes(), info.TOCDigest)
}

// first puts files first. Without any it has the other landmark.
func (b packed) first(t testing.TB, names ...string) packed {
	t.Helper()
	r, err := estargz.Open(bytes.NewReader(b.data), int64(len(b.data)), estargz.OpenOptions{})
	require.NoError(t, err)
	var out bytes.Buffer
	info, err := estargz.Reorder(t.Context(), &out, r, names, estargz.Options{})
	require.NoError(t, err)
	return annotated(out.Bytes(), info.TOCDigest)
}

func gzipped(t testing.TB, nodes ...node) packed {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(tarOf(t, nodes...))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return packed{data: b.Bytes(), mediaType: ocispecs.MediaTypeImageLayerGzip}
}

func zstdOf(t testing.TB, tail string, nodes ...node) packed {
	t.Helper()
	e, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	return packed{data: append(e.EncodeAll(tarOf(t, nodes...), nil), tail...), mediaType: ocispecs.MediaTypeImageLayerZstd}
}

// A store is what a registry or a layout holds: blobs and manifests.
type store struct {
	t     testing.TB
	blobs map[digest.Digest][]byte
}

func newStore(t testing.TB) *store {
	return &store{t: t, blobs: map[digest.Digest][]byte{}}
}

func (s *store) put(mediaType string, data []byte) ocispecs.Descriptor {
	d := digest.FromBytes(data)
	s.blobs[d] = data
	return ocispecs.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (s *store) putJSON(mediaType string, v any) ocispecs.Descriptor {
	s.t.Helper()
	data, err := json.Marshal(v)
	require.NoError(s.t, err)
	return s.put(mediaType, data)
}

// image stores an image for a platform.
func (s *store) image(platform string, layers ...packed) ocispecs.Descriptor {
	s.t.Helper()
	p, err := platforms.Parse(platform)
	require.NoError(s.t, err)
	config := ocispecs.Image{Platform: p}
	manifest := ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest}
	for _, l := range layers {
		desc := s.put(l.mediaType, l.data)
		desc.Annotations = l.annotations
		manifest.Layers = append(manifest.Layers, desc)
		config.History = append(config.History, ocispecs.History{CreatedBy: l.createdBy}, ocispecs.History{CreatedBy: "ENV", EmptyLayer: true})
	}
	manifest.Config = s.putJSON(ocispecs.MediaTypeImageConfig, config)
	desc := s.putJSON(ocispecs.MediaTypeImageManifest, manifest)
	desc.Platform = &p
	return desc
}

func (s *store) index(manifests ...ocispecs.Descriptor) ocispecs.Descriptor {
	s.t.Helper()
	return s.putJSON(ocispecs.MediaTypeImageIndex, indexOf(manifests...))
}

func indexOf(manifests ...ocispecs.Descriptor) ocispecs.Index {
	return ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex, Manifests: manifests}
}

// named is a descriptor as the index of a layout has it.
func named(desc ocispecs.Descriptor, tag string) ocispecs.Descriptor {
	desc.Platform = nil
	desc.Annotations = map[string]string{ocispecs.AnnotationRefName: tag}
	return desc
}

// files are those of a layout whose index names the descriptors.
func (s *store) files(roots ...ocispecs.Descriptor) map[string][]byte {
	s.t.Helper()
	index, err := json.Marshal(indexOf(roots...))
	require.NoError(s.t, err)
	files := map[string][]byte{
		ocispecs.ImageLayoutFile: []byte(`{"imageLayoutVersion": "1.0.0"}`),
		ocispecs.ImageIndexFile:  index,
	}
	for d, data := range s.blobs {
		files[blobName(d)] = data
	}
	return files
}

// layout writes a directory.
func (s *store) layout(roots ...ocispecs.Descriptor) string {
	s.t.Helper()
	to := s.t.TempDir()
	for name, data := range s.files(roots...) {
		name = filepath.Join(to, name)
		require.NoError(s.t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(s.t, os.WriteFile(name, data, 0o644))
	}
	return to
}

// archive writes a tar.
func (s *store) archive(roots ...ocispecs.Descriptor) string {
	s.t.Helper()
	nodes := []node{dir("blobs")}
	for name, data := range s.files(roots...) {
		nodes = append(nodes, node{tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: 0o644}, data})
	}
	to := filepath.Join(s.t.TempDir(), "image.tar")
	require.NoError(s.t, os.WriteFile(to, tarOf(s.t, nodes...), 0o644))
	return to
}

// inspected reports on an image of these layers.
func inspected(t testing.TB, layers ...packed) *Image {
	t.Helper()
	s := newStore(t)
	im, err := Inspect(t.Context(), s.layout(s.image("linux/amd64", layers...)), Options{})
	require.NoError(t, err)
	return im
}

// The sample is an image with a layer of each kind.
func sample(t testing.TB) (*store, ocispecs.Descriptor) {
	t.Helper()
	s := newStore(t)
	base := eStargz(t, estargz.Options{},
		dir("etc"), file("etc/passwd", 900, "passwd"), file("etc/motd", 300, "motd"),
		dir("lib"), file("lib/libc.so", 120_000, "libc"), file("lib/unused.so", 260_000, "unused"),
		file("lib/old.so", 40_000, "old"))
	app := eStargz(t, estargz.Options{},
		dir("app"), file("app/model", 300_000, "model"), file("app/empty", 0, ""), file("app/libc.so", 120_000, "libc"),
		dir("etc"), file("etc/motd", 300, "new"), dir("lib"), file("lib/.wh.old.so", 0, ""))
	external := eStargz(t, estargz.Options{}, file("x", 10_000, "x"))
	external.data = append(external.data[:len(external.data)-estargz.FooterSize], externalFooter()...)
	return s, s.image("linux/amd64",
		base.first(t, "etc/passwd", "lib/libc.so").by("ADD rootfs.tar / # buildkit"),
		gzipped(t, file("tools/big", 90_000, "big")).by("RUN install tools # buildkit"),
		app.first(t, "app/model", "app/empty").by("COPY app /app # buildkit"),
		eStargz(t, estargz.Options{}, file("app/model", 300_000, "model"), file("app/extra", 20_000, "extra")).by("COPY --chmod=600 app/model /app/ # buildkit"),
		eStargz(t, estargz.Options{MinChunkSize: 1 << 20}, file("a", 1000, "a"), file("b", 2000, "b")).first(t).by("RUN touch a b # buildkit"),
		zstdOf(t, "", file("z", 3000, "z")).by("COPY z / # buildkit"),
		zstdOf(t, zstdMagic, file("z", 3000, "z")).by("COPY z / # buildkit"),
		external.by("COPY x / # buildkit"),
	)
}

// externalFooter is the end of a blob whose TOC lies elsewhere: an empty gzip
// member with an extra field.
func externalFooter() []byte {
	const magic = "STARGZEXTERNALTOC"
	head := []byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 4 + byte(len(magic)), 0, 'S', 'G', byte(len(magic)), 0}
	return slices.Concat(head, []byte(magic), []byte{1, 0, 0, 0xff, 0xff}, make([]byte, 8))
}
