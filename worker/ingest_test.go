package worker

import (
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/plugins/content/local"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// What was written of a blob is kept if there is too little of it, and not if it
// is wrong.
func TestWrongIngestsAreDiscarded(t *testing.T) {
	dir := t.TempDir()
	blobs, err := local.NewStore(dir)
	require.NoError(t, err)
	db, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	require.NoError(t, err)
	defer db.Close()
	store := discardWrong(containerdsnapshot.NewContentStore(ctdmetadata.NewDB(db, blobs, nil).ContentStore(), "test"))

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

	w, _ := write("the wrong bytes")
	require.ErrorContains(t, w.Commit(t.Context(), desc.Size, desc.Digest), "unexpected commit digest")
	require.NoError(t, w.Close())

	w, at := write("the right")
	require.Zero(t, at, "where the next pull begins")
	require.NoError(t, w.Close())
	w, at = write(" bytes")
	require.EqualValues(t, 9, at, "where one begins after another was interrupted")
	require.NoError(t, w.Commit(t.Context(), desc.Size, desc.Digest))
	got, err := content.ReadBlob(t.Context(), store, desc)
	require.NoError(t, err)
	require.Equal(t, right, got)
	left, err := filepath.Glob(filepath.Join(dir, "ingest", "*"))
	require.NoError(t, err)
	require.Empty(t, left)
}
