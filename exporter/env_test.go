package exporter

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	stock "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/metadata"
	bkexporter "github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver/llbsolver/compat"
	"github.com/moby/buildkit/util/leaseutil"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

// env is what an export touches of a worker: BuildKit's cache, content store
// and image exporter, on a temporary directory. Its layers exist as blobs, so
// nothing is ever mounted.
type env struct {
	t     *testing.T
	ctx   context.Context
	cs    content.Store
	cache cache.Manager
	stock bkexporter.Exporter
}

func newEnv(t *testing.T) *env {
	t.Helper()
	const ns = "test"
	dir := t.TempDir()
	ctx := namespaces.WithNamespace(t.Context(), ns)

	sn, err := native.NewSnapshotter(filepath.Join(dir, "snapshots"))
	require.NoError(t, err)
	blobs, err := local.NewStore(dir)
	require.NoError(t, err)
	db, err := bolt.Open(filepath.Join(dir, "containerd.db"), 0o600, nil)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	mdb := ctdmetadata.NewDB(db, blobs, map[string]snapshots.Snapshotter{"native": sn})
	require.NoError(t, mdb.Init(ctx))
	md, err := metadata.NewStore(filepath.Join(dir, "metadata.db"))
	require.NoError(t, err)
	t.Cleanup(func() { md.Close() })

	cs := containerdsnapshot.NewContentStore(mdb.ContentStore(), ns)
	lm := leaseutil.WithNamespace(ctdmetadata.NewLeaseManager(mdb), ns)
	bksn := snapshot.FromContainerdSnapshotter("native", containerdsnapshot.NSSnapshotter(ns, mdb.Snapshotter("native")), nil)
	applier, differ := apply.NewFileSystemApplier(cs), walking.NewWalkingDiff(cs)
	cm, err := cache.NewManager(cache.ManagerOpt{
		Snapshotter:    bksn,
		MetadataStore:  md,
		ContentStore:   cs,
		LeaseManager:   lm,
		GarbageCollect: mdb.GarbageCollect,
		Applier:        applier,
		Differ:         differ,
		Root:           dir,
		MountPoolRoot:  filepath.Join(dir, "mounts"),
	})
	require.NoError(t, err)
	t.Cleanup(func() { cm.Close() })

	iw, err := containerimage.NewImageWriter(containerimage.WriterOpt{Snapshotter: bksn, ContentStore: cs, Applier: applier, Differ: differ})
	require.NoError(t, err)
	stock, err := containerimage.New(containerimage.Opt{ImageWriter: iw, LeaseManager: lm})
	require.NoError(t, err)

	ctx, done, err := leaseutil.WithLease(ctx, lm, leaseutil.MakeTemporary)
	require.NoError(t, err)
	t.Cleanup(func() { done(context.WithoutCancel(ctx)) })
	return &env{t: t, ctx: ctx, cs: cs, cache: cm, stock: stock}
}

// blob stores a layer and describes it as a pulled manifest would.
func (e *env) blob(blob []byte) ocispecs.Descriptor {
	e.t.Helper()
	desc := describe(e.t, blob)
	require.NoError(e.t, content.WriteBlob(e.ctx, e.cs, desc.Digest.String(), bytes.NewReader(blob), desc))
	return desc
}

// eStargz stores an eStargz layer with its annotations, as BuildKit does when it
// has pulled one.
func (e *env) eStargz(layer []byte) ocispecs.Descriptor {
	e.t.Helper()
	blob, desc := eStargz(e.t, layer)
	return e.pulled(blob, desc)
}

// pulled stores a blob with the annotations that its descriptor has, whatever
// the blob is.
func (e *env) pulled(blob []byte, desc ocispecs.Descriptor) ocispecs.Descriptor {
	e.t.Helper()
	desc.Digest, desc.Size = digest.FromBytes(blob), int64(len(blob))
	info := content.Info{Digest: desc.Digest, Labels: map[string]string{"buildkit.io/blob/mediatype": desc.MediaType}}
	for k, v := range desc.Annotations {
		info.Labels["buildkit.io/blob/annotation."+k] = v
	}
	require.NoError(e.t, content.WriteBlob(e.ctx, e.cs, desc.Digest.String(), bytes.NewReader(blob), desc))
	_, err := e.cs.Update(e.ctx, info)
	require.NoError(e.t, err)
	return desc
}

// ref makes a reference of layers, bottom first.
func (e *env) ref(opts []cache.RefOption, layers ...ocispecs.Descriptor) cache.ImmutableRef {
	e.t.Helper()
	var r cache.ImmutableRef
	for _, desc := range layers {
		next, err := e.cache.GetByBlob(e.ctx, desc, r, opts...)
		require.NoError(e.t, err)
		e.t.Cleanup(func() { next.Release(context.WithoutCancel(e.ctx)) })
		r = next
	}
	return r
}

// export runs the wrapped image exporter and returns what it wrote.
func (e *env) export(src *bkexporter.Source, attrs map[string]string) (ocispecs.Descriptor, error) {
	e.t.Helper()
	_, desc, err := e.answer(src, attrs)
	return desc, err
}

// answer returns what the client is told, too.
func (e *env) answer(src *bkexporter.Source, attrs map[string]string) (map[string]string, ocispecs.Descriptor, error) {
	e.t.Helper()
	exp := Wrap("image", e.stock, e.cs, estargz.NewPool(2, 0), noDefaults(e.t))
	inst, err := exp.Resolve(e.ctx, 0, attrs)
	require.NoError(e.t, err)
	require.Equal(e.t, attrs, inst.Attrs())
	response, _, desc, err := inst.Export(e.ctx, src, bkexporter.ExportBuildInfo{CompatibilityVersion: compat.CompatibilityVersionCurrent})
	if err != nil {
		return nil, ocispecs.Descriptor{}, err
	}
	e.t.Cleanup(func() { desc.Release() })
	return response, desc.Descriptor(), nil
}

// image is a manifest and the configuration it belongs to.
type image struct {
	ocispecs.Manifest
	config ocispecs.Image
}

func (e *env) image(desc ocispecs.Descriptor) image {
	e.t.Helper()
	var img image
	e.decode(desc, &img.Manifest)
	e.decode(img.Config, &img.config)
	require.Len(e.t, img.config.RootFS.DiffIDs, len(img.Layers))
	return img
}

func (e *env) decode(desc ocispecs.Descriptor, v any) {
	e.t.Helper()
	require.NoError(e.t, json.Unmarshal(e.read(desc), v))
}

func (e *env) read(desc ocispecs.Descriptor) []byte {
	e.t.Helper()
	b, err := content.ReadBlob(e.ctx, e.cs, desc)
	require.NoError(e.t, err)
	return b
}

// checkLayer wants an eStargz layer that the stock library accepts, with the
// diffID that the configuration names, and returns its files' times.
func (e *env) checkLayer(img image, i int) map[string]time.Time {
	e.t.Helper()
	desc := img.Layers[i]
	blob := e.read(desc)
	plain := gunzipped(e.t, blob)
	require.Equal(e.t, ocispecs.MediaTypeImageLayerGzip, desc.MediaType)
	require.Equal(e.t, digest.FromBytes(plain), img.config.RootFS.DiffIDs[i])
	require.Contains(e.t, desc.Annotations, stock.StoreUncompressedSizeAnnotation)
	require.NotContains(e.t, desc.Annotations, labels.LabelUncompressed)
	r, err := stock.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
	require.NoError(e.t, err)
	_, err = r.VerifyTOC(digest.Digest(desc.Annotations[stock.TOCJSONDigestAnnotation]))
	require.NoError(e.t, err)

	times := map[string]time.Time{}
	tr := tar.NewReader(bytes.NewReader(plain))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		require.NoError(e.t, err)
		if h.Name != stock.TOCTarName {
			times[h.Name] = h.ModTime.UTC()
		}
	}
	return times
}

// lazy is a provider that counts how often a blob is pulled.
type lazy struct {
	blobs map[digest.Digest][]byte
	pulls map[digest.Digest]int
}

func (l *lazy) handlers(descs ...ocispecs.Descriptor) cache.DescHandlers {
	h := cache.DescHandlers{}
	for _, d := range descs {
		h[d.Digest] = &cache.DescHandler{Provider: func(session.Group) content.Provider { return l }, Annotations: d.Annotations}
	}
	return h
}

func (l *lazy) ReaderAt(_ context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	l.pulls[desc.Digest]++
	return readerAt{bytes.NewReader(l.blobs[desc.Digest])}, nil
}

type readerAt struct{ *bytes.Reader }

func (readerAt) Close() error { return nil }

func describe(t *testing.T, blob []byte) ocispecs.Descriptor {
	t.Helper()
	return ocispecs.Descriptor{
		MediaType:   ocispecs.MediaTypeImageLayerGzip,
		Digest:      digest.FromBytes(blob),
		Size:        int64(len(blob)),
		Annotations: map[string]string{labels.LabelUncompressed: digest.FromBytes(gunzipped(t, blob)).String()},
	}
}

// layerOf is a gzip layer with files of that time, which hold size bytes each.
func layerOf(t *testing.T, tm time.Time, size int, names ...string) []byte {
	t.Helper()
	return gzipped(t, tarOf(t, tm, size, names...))
}

func tarOf(t *testing.T, tm time.Time, size int, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, name := range names {
		var seed [32]byte
		copy(seed[:], name)
		data := make([]byte, size)
		rand.NewChaCha8(seed).Read(data)
		require.NoError(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(size), Mode: 0o644, ModTime: tm}))
		_, err := tw.Write(data)
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	return b.Bytes()
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return out.Bytes()
}

func gunzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(b))
	require.NoError(t, err)
	out, err := io.ReadAll(r)
	require.NoError(t, err)
	return out
}

// eStargz is a layer as another builder would push it, and its annotations.
func eStargz(t *testing.T, layer []byte) ([]byte, ocispecs.Descriptor) {
	t.Helper()
	var b bytes.Buffer
	w := stock.NewWriter(&b)
	require.NoError(t, w.AppendTarLossLess(bytes.NewReader(layer)))
	toc, err := w.Close()
	require.NoError(t, err)
	desc := describe(t, b.Bytes())
	desc.Annotations[stock.TOCJSONDigestAnnotation] = toc.String()
	desc.Annotations[stock.StoreUncompressedSizeAnnotation] = "1"
	return b.Bytes(), desc
}
