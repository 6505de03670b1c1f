package worker

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/plugins/content/local"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

func newContentStore(t *testing.T, dir string) content.Store {
	t.Helper()
	blobs, err := local.NewStore(dir)
	require.NoError(t, err)
	db, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return discardFailed(containerdsnapshot.NewContentStore(ctdmetadata.NewDB(db, blobs, nil).ContentStore(), "test"))
}

// What was written of a blob is kept if there is too little of it, and not if it
// is wrong.
func TestWrongIngestsAreDiscarded(t *testing.T) {
	dir := t.TempDir()
	store := newContentStore(t, dir)

	right := []byte("the right bytes")
	desc := ocispecs.Descriptor{Digest: digest.FromBytes(right), Size: int64(len(right))}
	write := func(p string) (content.Writer, int64) {
		w, err := store.Writer(t.Context(), content.WithRef("ref"), content.WithDescriptor(desc))
		require.NoError(t, err)
		st, err := w.Status()
		require.NoError(t, err)
		_, err = w.Write([]byte(p))
		require.NoError(t, err)
		return w, st.Offset
	}

	ingests := func() []string {
		found, err := filepath.Glob(filepath.Join(dir, "ingest", "*"))
		require.NoError(t, err)
		return found
	}

	w, _ := write("the wrong bytes")
	require.ErrorContains(t, w.Commit(t.Context(), desc.Size, desc.Digest), "unexpected commit digest")
	require.NoError(t, w.Close())
	require.Empty(t, ingests())

	unknown, err := store.Writer(t.Context(), content.WithRef("of no digest"))
	require.NoError(t, err)
	_, err = unknown.Write([]byte("part"))
	require.NoError(t, err)
	require.NoError(t, unknown.Close())
	require.Empty(t, ingests())

	w, at := write("the right")
	require.Zero(t, at, "where the next pull begins")
	require.NoError(t, w.Close())
	w, at = write(" bytes")
	require.EqualValues(t, 9, at, "where one begins after another was interrupted")
	require.NoError(t, w.Commit(t.Context(), desc.Size, desc.Digest))
	got, err := content.ReadBlob(t.Context(), store, desc)
	require.NoError(t, err)
	require.Equal(t, right, got)
	require.Empty(t, ingests())
}

// Nothing is kept of a blob that the disk has no room for.
func TestFullIngestsAreDiscarded(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mounting a tmpfs, which needs root: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	store := newContentStore(t, dir)
	free := func() uint64 {
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(dir, &st))
		return st.Bfree
	}
	write := func() (content.Writer, error) {
		desc := ocispecs.Descriptor{Digest: digest.FromString("right"), Size: 2 << 20}
		w, err := store.Writer(t.Context(), content.WithRef("ref"), content.WithDescriptor(desc))
		require.NoError(t, err)
		_, err = w.Write(make([]byte, 2<<20))
		return w, err
	}
	before := free()
	w, err := write()
	require.ErrorIs(t, err, unix.ENOSPC)
	require.NoError(t, w.Close())
	require.InDelta(t, before, free(), 16, "blocks, with what the database has grown by")

	// Who closes twice does not take it from the next writer.
	next, err := store.Writer(t.Context(), content.WithRef("ref"))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	_, err = next.Write([]byte("right"))
	require.NoError(t, err)
	require.NoError(t, next.Commit(t.Context(), 5, digest.FromString("right")))
	require.NoError(t, next.Close())
}

// One pull goes on where another was interrupted, and begins anew if that was
// wrong.
func TestInterruptedIngest(t *testing.T) {
	right := []byte("the right bytes")
	desc := ocispecs.Descriptor{Digest: digest.FromBytes(right), Size: int64(len(right))}
	for here, want := range map[string][]int64{
		"the right":       {9},
		"the right bytes": nil,
		"the wrong":       {9, 0},
		"the wrong bytes": nil,
	} {
		t.Run(here, func(t *testing.T) {
			store := newContentStore(t, t.TempDir())
			w, err := store.Writer(t.Context(), content.WithRef(remotes.MakeRefKey(t.Context(), desc)), content.WithDescriptor(desc))
			require.NoError(t, err)
			_, err = w.Write([]byte(here))
			require.NoError(t, err)
			require.NoError(t, w.Close())

			var begins []int64
			require.NoError(t, remotes.Fetch(t.Context(), store, remotes.FetcherFunc(func(context.Context, ocispecs.Descriptor) (io.ReadCloser, error) {
				return &seekable{bytes.NewReader(right), &begins}, nil
			}), desc))
			require.Equal(t, want, begins)
			got, err := content.ReadBlob(t.Context(), store, desc)
			require.NoError(t, err)
			require.Equal(t, right, got)
		})
	}
}

// seekable notes from where on it is read, if that is told.
type seekable struct {
	*bytes.Reader
	begins *[]int64
}

func (r *seekable) Close() error { return nil }

func (r *seekable) Seek(offset int64, whence int) (int64, error) {
	*r.begins = append(*r.begins, offset)
	return r.Reader.Seek(offset, whence)
}
