package pushed

import (
	"archive/tar"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
)

func TestSameEntries(t *testing.T) {
	headers := func() []*tar.Header {
		return []*tar.Header{
			{Name: "./d/", Typeflag: tar.TypeDir},
			{Name: "d/a", Typeflag: tar.TypeReg},
			{Name: "d/l", Typeflag: tar.TypeLink, Linkname: "./d/a"},
			{Name: "d/\xff", Typeflag: tar.TypeReg},
		}
	}
	entries := func() []*estargz.TOCEntry {
		return []*estargz.TOCEntry{
			{Name: "d/", Type: "dir"},
			{Name: "d/a", Type: "reg"},
			{Name: "d/l", Type: "hardlink", LinkName: "d/a"},
			{Name: "d/\uFFFD", Type: "reg"},
		}
	}
	if err := sameEntries(headers(), entries()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(e []*estargz.TOCEntry) []*estargz.TOCEntry{
		"one more": func(e []*estargz.TOCEntry) []*estargz.TOCEntry {
			return append(e, &estargz.TOCEntry{Name: "more", Type: "reg"})
		},
		"one less":            func(e []*estargz.TOCEntry) []*estargz.TOCEntry { return e[:3] },
		"another order":       func(e []*estargz.TOCEntry) []*estargz.TOCEntry { e[1], e[3] = e[3], e[1]; return e },
		"link to another":     func(e []*estargz.TOCEntry) []*estargz.TOCEntry { e[2].LinkName = "d"; return e },
		"file for a link":     func(e []*estargz.TOCEntry) []*estargz.TOCEntry { e[2].Type = "reg"; return e },
		"link for a file":     func(e []*estargz.TOCEntry) []*estargz.TOCEntry { e[1].Type = "hardlink"; return e },
		"another name":        func(e []*estargz.TOCEntry) []*estargz.TOCEntry { e[1].Name = "d/b"; return e },
		"nothing in its TOC":  func([]*estargz.TOCEntry) []*estargz.TOCEntry { return nil },
		"the same link twice": func(e []*estargz.TOCEntry) []*estargz.TOCEntry { return append(e, e[2]) },
	} {
		if err := sameEntries(headers(), spoil(entries())); err == nil {
			t.Errorf("%s: is not noticed", name)
		}
	}
}
