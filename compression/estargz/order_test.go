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

func TestWriteInOrder(t *testing.T) {
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
		t.Run(name, func(t *testing.T) {
			blob, info := write(t, original, estargz.Options{Order: c.order})
			ordered := unpack(t, blob)
			require.Equal(t, c.want, names(t, ordered))
			checkBlob(t, ordered, blob, info)
			f, err := open(t, blob).OpenFile("last")
			require.NoError(t, err)
			p, err := io.ReadAll(f)
			require.NoError(t, err)
			require.Equal(t, "new", string(p))

			theirs := stockOpen(t, blob)
			_, err = theirs.VerifyTOC(info.TOCDigest)
			require.NoError(t, err)
			agree(t, blob, open(t, blob), theirs)
		})
	}
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
	ours, _ := write(t, original, estargz.Options{Order: order})
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
	_, err := estargz.Write(context.Background(), io.Discard, bytes.NewReader(tarOf(t, dir(".prefetch.landmark"))), estargz.Options{Order: []string{}})
	require.ErrorContains(t, err, `".prefetch.landmark" has a name that eStargz needs`)
}
