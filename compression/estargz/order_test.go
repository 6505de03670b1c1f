package estargz_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"testing"

	stock "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/stretchr/testify/require"

	"github.com/buildkitd-esgz/buildkitd-esgz/compression/estargz"
)

func names(t *testing.T, p []byte) (names []string) {
	r := tar.NewReader(bytes.NewReader(p))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return names
		}
		require.NoError(t, err)
		names = append(names, h.Name)
	}
}

func TestOrder(t *testing.T) {
	original := tarOf(t,
		dir("usr/"), file("usr/a", "a"), dir("usr/lib/"), file("usr/lib/b", text(1, 5000)), file("c", "c"),
		link("hard", "usr/lib/b"), symlink("soft", "c"), file("last", "old"), file("last", "new"),
		file(".prefetch.landmark", "\x0f"), file("stargz.index.json", "{}"))
	rest := func(names ...string) []string { return names }
	for name, c := range map[string]struct{ order, want []string }{
		"parents first":      {[]string{"/usr/lib/b"}, rest("usr/", "usr/lib/", "usr/lib/b", ".prefetch.landmark", "usr/a", "c", "hard", "soft", "last")},
		"targets first":      {[]string{"c", "hard"}, rest("c", "usr/", "usr/lib/", "usr/lib/b", "hard", ".prefetch.landmark", "usr/a", "soft", "last")},
		"in the order given": {[]string{"soft", "./c", "soft", "last"}, rest("soft", "c", "last", ".prefetch.landmark", "usr/", "usr/a", "usr/lib/", "usr/lib/b", "hard")},
		"unknown names":      {[]string{"nowhere"}, rest(".no.prefetch.landmark", "usr/", "usr/a", "usr/lib/", "usr/lib/b", "c", "hard", "soft", "last")},
		"none":               {[]string{}, rest(".no.prefetch.landmark", "usr/", "usr/a", "usr/lib/", "usr/lib/b", "c", "hard", "soft", "last")},
	} {
		for members, opts := range map[string]estargz.Options{"own members": {}, "shared members": {MinChunkSize: 10_000}} {
			t.Run(name+", "+members, func(t *testing.T) {
				unordered, _ := write(t, original, opts)
				blob, info := reorder(t, unordered, c.order, opts)
				ordered := unpack(t, blob)
				require.Equal(t, c.want, names(t, ordered))
				checkBlob(t, ordered, blob, info)
				f, err := open(t, blob).OpenFile("last")
				require.NoError(t, err)
				p, err := io.ReadAll(f)
				require.NoError(t, err)
				require.Equal(t, "new", string(p))
				theirs := stockOpen(t, blob)
				if opts.MinChunkSize == 0 { // their check does not know innerOffset
					_, err = theirs.VerifyTOC(info.TOCDigest)
					require.NoError(t, err)
				}
				agree(t, blob, open(t, blob), theirs)
			})
		}
	}
}

// TestSharedMembersEndAtLandmark: a runtime that prefetches what stands before
// the landmark has all of the prioritized files, and nothing else.
func TestSharedMembersEndAtLandmark(t *testing.T) {
	opts := estargz.Options{MinChunkSize: 1 << 20}
	original := tarOf(t, file("a", text(1, 5000)), file("b", text(2, 5000)), file("c", text(3, 5000)), file("d", text(4, 5000)))
	unordered, _ := write(t, original, opts)
	blob, _ := reorder(t, unordered, []string{"d", "b"}, opts)
	r := open(t, blob)
	offset := func(name string) int64 {
		e, ok := r.Lookup(name)
		require.True(t, ok, name)
		return e.Offset
	}
	require.Equal(t, offset("d"), offset("b"), "they share a member")
	require.Equal(t, offset("a"), offset("c"), "they share a member")
	require.Less(t, offset("b"), offset(estargz.PrefetchLandmark))
	require.GreaterOrEqual(t, offset("a"), offset(estargz.PrefetchLandmark))
}

// TestOrderLikeStock compares the order with that of stargz-snapshotter's own
// builder, which ctr-remote uses.
func TestOrderLikeStock(t *testing.T) {
	original := ordinary()
	order := []string{"usr/bin/su2", "etc/passwd", "usr/bin/large", "etc/shadow"}
	b, err := stock.Build(section(original), stock.WithPrioritizedFiles(order))
	require.NoError(t, err)
	blob, err := io.ReadAll(b)
	require.NoError(t, err)
	require.NoError(t, b.Close())
	unordered, _ := write(t, original, estargz.Options{})
	ours, _ := reorder(t, unordered, order, estargz.Options{})
	// Theirs drops the root's entry and appends the TOC to the tar proper.
	want := []string{}
	for _, e := range open(t, blob).Entries() {
		if e.Type != estargz.TypeChunk && e.Name != "" {
			want = append(want, e.Name)
		}
	}
	got := []string{}
	for _, e := range open(t, ours).Entries() {
		if e.Type != estargz.TypeChunk && e.Name != "" {
			got = append(got, e.Name)
		}
	}
	require.Equal(t, want, got)
}

func TestOrderRefuses(t *testing.T) {
	blob, _ := write(t, tarOf(t, dir(".prefetch.landmark")), estargz.Options{})
	_, err := estargz.Reorder(context.Background(), io.Discard, open(t, blob), nil, estargz.Options{})
	require.ErrorContains(t, err, `".prefetch.landmark" has a name that eStargz needs`)
}
