package estargz

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestBuilderLimits: a TOC that is written is one that a Reader accepts.
func TestBuilderLimits(t *testing.T) {
	deep := func(i int) *Entry {
		return &Entry{Name: fmt.Sprint(i) + strings.Repeat("/d", 2000) + "/", Type: TypeDir}
	}
	large := func(i int) *Entry {
		return &Entry{Name: fmt.Sprint(i), Type: TypeReg, Xattrs: map[string][]byte{"user.x": make([]byte, 1<<20)}}
	}
	for name, c := range map[string]struct {
		builder tocBuilder
		entry   func(i int) *Entry
		fits    int
		want    string
	}{
		"entries":     {tocBuilder{count: maxBuilt - 2}, func(i int) *Entry { return &Entry{Name: fmt.Sprint(i), Type: TypeReg} }, 1, `tar entry "1": more than 4194303 files`},
		"directories": {tocBuilder{}, deep, 32, "directories have no entry of their own"},
		"xattrs":      {tocBuilder{}, large, 32, `tar entry "32": names and xattrs up to it have`},
	} {
		t.Run(name, func(t *testing.T) {
			toc := c.builder
			for i := range c.fits {
				_, err := toc.add(c.entry(i))
				require.NoError(t, err)
			}
			_, err := toc.add(c.entry(c.fits))
			require.ErrorContains(t, err, c.want)
		})
	}

	toc := tocBuilder{count: maxBuilt - 3}
	f, err := toc.add(&Entry{Name: "a", Type: TypeReg, Size: 3})
	require.NoError(t, err)
	require.NoError(t, toc.chunk(f, &Entry{Name: "a", Type: TypeChunk}))
	require.ErrorContains(t, toc.chunk(f, &Entry{Name: "a", Type: TypeChunk}), `tar entry "a": more than`)

	_, err = encodeTOC(make([]*Entry, maxTOCEntries+1))
	require.ErrorContains(t, err, "a TOC of 4194305 entries")
	_, err = encodeTOC([]*Entry{{Name: "a", Type: TypeReg, Xattrs: map[string][]byte{"user.x": make([]byte, 13<<20)}}})
	require.ErrorContains(t, err, `TOC entry "a"`)
}
