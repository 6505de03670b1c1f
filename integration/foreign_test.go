package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	stocklib "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/externaltoc"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/integration/pushed"
)

// A base that others wrote builds here as it does with the stock daemon: eager
// and lazy, with a profile, with and without forced compression.
func TestForeignBases(t *testing.T) {
	needs(t)
	plain := startDaemon(t, stock)
	daemons := map[string]*daemon{"eager": startDaemon(t, ours), "lazy": startLazy(t, "")}
	const command, want = `["/bin/busybox", "cat", "/hello", "/more"]`, "hello, foreign worldof the context"
	// The daemons live until all cases have ended.
	t.Run("all", func(t *testing.T) {
		for _, base := range foreignBases(t) {
			t.Run(base.name, func(t *testing.T) {
				t.Parallel()
				image := repository(t)
				require.NoError(t, pushed.Push(t.Context(), image+":base", base.manifestType(), base.config, base.layers))
				dir := writeFiles(t, map[string]string{"more": "of the context",
					"Dockerfile": "FROM " + image + ":base\nCOPY more /more\nRUN " + command + "\n"})
				plain.build(t, dir, "--output", "type=image,push=true,oci-mediatypes=true,name="+image+":stock")
				for _, c := range []struct{ daemon, force string }{{"eager", "false"}, {"eager", "true"}, {"lazy", "true"}} {
					as := image + ":" + c.daemon + "-" + c.force
					p := daemons[c.daemon].build(t, dir, "--output", "type=image,push=true,oci-mediatypes=true,compression=estargz,force-compression="+c.force+",name="+as)
					require.Empty(t, slices.DeleteFunc(p.warnings, base.mayWarn), as)
					again := plain.build(t, upon(t, as, command), "--no-cache")
					require.Contains(t, again.logs.String(), want, as)
				}
			})
		}
	})
}

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	tocAnnotation  = "containerd.io/snapshot/stargz/toc.digest"
)

type foreignBase struct {
	name   string
	config ocispecs.Image
	layers []pushed.Blob
}

func (b foreignBase) manifestType() string {
	if b.layers[0].Descriptor.MediaType == dockerLayer {
		return dockerManifest
	}
	return ocispecs.MediaTypeImageManifest
}

// mayWarn: an image that has nothing to run gets no profile, and the build says so.
func (b foreignBase) mayWarn(warning string) bool {
	return b.config.Config.Entrypoint == nil && strings.Contains(warning, "neither ENTRYPOINT nor CMD")
}

// foreignBases are images of one kind of layer each.
func foreignBases(t *testing.T) []foreignBase {
	t.Helper()
	config := ocispecs.Image{Platform: ocispecs.Platform{OS: "linux", Architecture: "amd64"},
		Config: ocispecs.ImageConfig{Entrypoint: []string{"/bin/busybox", "cat", "/hello"}}}
	files := foreignTar(t)
	none := tarOf(t)
	one := func(name, mediaType string, blob []byte, annotations map[string]string) foreignBase {
		return foreignBase{name, config, []pushed.Blob{{
			Descriptor: ocispecs.Descriptor{MediaType: mediaType, Annotations: annotations},
			Bytes:      blob, DiffID: digest.FromBytes(files),
		}}}
	}
	gz, zst := gzipOf(t, files), zstdOf(t, files)
	bases := []foreignBase{
		one("uncompressed", ocispecs.MediaTypeImageLayer, files, nil),
		one("zstd", ocispecs.MediaTypeImageLayerZstd, zst, nil),
		one("docker", dockerLayer, gz, nil),
		//lint:ignore SA1019 deprecated, and still pushed
		one("nondistributable", ocispecs.MediaTypeImageLayerNonDistributableGzip, gz, nil),
		one("false TOC digest", ocispecs.MediaTypeImageLayerGzip, gz, map[string]string{tocAnnotation: digest.FromString("no TOC").String()}),
		foreignEStargz(t, config, "zstd chunked", ocispecs.MediaTypeImageLayerZstd, files, &zstdCompression{&zstdchunked.Compressor{CompressionLevel: zstd.SpeedFastest}, new(zstdchunked.Decompressor)}),
		foreignEStargz(t, config, "external TOC", ocispecs.MediaTypeImageLayerGzip, files, externaltoc.NewGzipCompressionWithLevel(nil, gzip.BestSpeed)),
		foreignEStargz(t, config, "stock eStargz", ocispecs.MediaTypeImageLayerGzip, files, nil),
	}
	empty := one("empty layers", ocispecs.MediaTypeImageLayerGzip, gz, nil)
	hollow := pushed.Blob{Descriptor: ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip}, Bytes: gzipOf(t, none), DiffID: digest.FromBytes(none)}
	empty.layers = []pushed.Blob{hollow, empty.layers[0], hollow}
	plain := one("no entrypoint", ocispecs.MediaTypeImageLayerGzip, gz, nil)
	plain.config.Config = ocispecs.ImageConfig{}
	return append(bases, empty, plain)
}

// foreignEStargz is a base whose layer the stock library writes.
func foreignEStargz(t *testing.T, config ocispecs.Image, name, mediaType string, files []byte, c stocklib.Compression) foreignBase {
	t.Helper()
	options := []stocklib.Option{stocklib.WithChunkSize(1 << 16)}
	if c != nil {
		options = append(options, stocklib.WithCompression(c))
	}
	built, err := stocklib.Build(io.NewSectionReader(bytes.NewReader(files), 0, int64(len(files))), options...)
	require.NoError(t, err)
	defer built.Close()
	blob, err := io.ReadAll(built)
	require.NoError(t, err)
	require.NoError(t, built.Close())
	return foreignBase{name, config, []pushed.Blob{{
		Descriptor: ocispecs.Descriptor{MediaType: mediaType, Annotations: map[string]string{tocAnnotation: built.TOCDigest().String()}},
		Bytes:      blob, DiffID: built.DiffID(),
	}}}
}

type zstdCompression struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

func foreignTar(t *testing.T) []byte {
	t.Helper()
	busybox, err := os.ReadFile(staticBusybox(t))
	require.NoError(t, err)
	return tarOf(t,
		tarEntry{tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, nil},
		tarEntry{tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, busybox},
		tarEntry{tar.Header{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"}, nil},
		tarEntry{tar.Header{Name: "hello", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("hello, foreign world")},
	)
}

type tarEntry struct {
	header  tar.Header
	content []byte
}

func tarOf(t *testing.T, entries ...tarEntry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		e.header.Size = int64(len(e.content))
		require.NoError(t, w.WriteHeader(&e.header))
		_, err := w.Write(e.content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return out.Bytes()
}

func gzipOf(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

func zstdOf(t *testing.T, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	defer w.Close()
	return w.EncodeAll(b, nil)
}
