package estargz

import (
	"bytes"
	"errors"
	"fmt"
	"io"
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

	_, err = encodeTOC(make([]*Entry, maxTOCEntries+1), 0, 0, nil)
	require.ErrorContains(t, err, "a TOC of 4194305 entries")
	_, err = encodeTOC([]*Entry{{Name: "a", Type: TypeReg, Xattrs: map[string][]byte{"user.x": make([]byte, 4<<20)}}}, 0, 0, nil)
	require.ErrorContains(t, err, `TOC entry "a"`)
}

// TestWriterCountsAsReader: a reader fills in what is not spelled, and counts the same
// text as the writer, which has replaced entries and implied directories besides.
func TestWriterCountsAsReader(t *testing.T) {
	names, read := newOwnerNames(), newOwnerNames()
	for _, want := range []string{"root", "", "root", "other", ""} {
		e := &Entry{Uname: want}
		e.Uname, _ = names.elide(e)
		read.fill(e)
		if want != "" {
			require.Equal(t, want, e.Uname)
		}
		require.Equal(t, names.users, read.users, "after %q", want)
	}

	// Replaced entries do not make room for the text of others.
	var toc tocBuilder
	for range 1 << 12 {
		_, err := toc.add(&Entry{Name: "a", Type: TypeFifo})
		require.NoError(t, err)
	}
	for i := range 90 {
		_, err := toc.add(&Entry{Name: fmt.Sprint(i), Type: TypeFifo, Xattrs: map[string][]byte{"user.x": make([]byte, 500<<10)}})
		require.NoError(t, err)
	}
	_, err := encodeTOC(toc.entries(), toc.implied, 1<<10, nil)
	require.ErrorContains(t, err, "larger than readers accept, 16826368 bytes for a layer of 1024")
}

// TestTOCTakesItsRoom: pieces that lines do not fill take room, too.
func TestTOCTakesItsRoom(t *testing.T) {
	full := errors.New("full")
	room := newRoom(64*pieceSize, full)
	toc := tocJSON{room: room}
	line := bytes.Repeat([]byte("x"), pieceSize/2+1)
	var err error
	for err == nil {
		err = toc.append(line)
		held := int64(0)
		for _, p := range toc.pieces {
			held += int64(cap(p))
		}
		require.LessOrEqual(t, held, 64*pieceSize-room.left.Load())
	}
	require.ErrorIs(t, err, full)

	toc = tocJSON{}
	var want []byte
	for _, n := range []int{0, 1, pieceSize - 1, pieceSize, 3*pieceSize + 5, 7} {
		p := bytes.Repeat([]byte{byte(n % 251)}, n)
		require.NoError(t, toc.append(p))
		want = append(want, p...)
	}
	got, err := io.ReadAll(toc.reader())
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	require.EqualValues(t, len(want), toc.size)
}
