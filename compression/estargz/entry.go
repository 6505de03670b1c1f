package estargz

import (
	"archive/tar"
	"fmt"
	"strings"
	"unicode/utf8"
)

// newEntry returns the TOC entry for a tar header, or nil for a header that
// describes no file. What the TOC cannot say is refused: a runtime would show
// a file system other than the tar's.
func newEntry(h *tar.Header) (*Entry, error) {
	e := &Entry{
		Name:    h.Name,
		ModTime: h.ModTime,
		Mode:    h.Mode,
		UID:     h.Uid,
		GID:     h.Gid,
		Uname:   strings.ToValidUTF8(h.Uname, ""), // tells nothing that UID does not
		Gname:   strings.ToValidUTF8(h.Gname, ""),
	}
	switch h.Typeflag {
	case tar.TypeReg:
		e.Type, e.Size = TypeReg, h.Size
	case tar.TypeDir:
		e.Type = TypeDir
	case tar.TypeSymlink:
		e.Type, e.LinkName = TypeSymlink, h.Linkname
	case tar.TypeLink:
		e.Type, e.LinkName = TypeHardlink, h.Linkname
	case tar.TypeChar:
		e.Type, e.DevMajor, e.DevMinor = TypeChar, int(h.Devmajor), int(h.Devminor)
	case tar.TypeBlock:
		e.Type, e.DevMajor, e.DevMinor = TypeBlock, int(h.Devmajor), int(h.Devminor)
	case tar.TypeFifo:
		e.Type = TypeFifo
	case tar.TypeXGlobalHeader:
		return nil, nil
	case tar.TypeGNUSparse:
		return nil, errSparse(h.Name)
	default:
		return nil, fmt.Errorf("tar entry %q: type %q is none that eStargz has", h.Name, h.Typeflag)
	}
	for key, value := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return nil, errSparse(h.Name)
		}
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok {
			continue
		}
		if e.Xattrs == nil {
			e.Xattrs = map[string][]byte{}
		}
		e.Xattrs[name] = []byte(value)
	}
	return e, checkEntry(e)
}

func errSparse(name string) error {
	return fmt.Errorf("tar entry %q: a sparse file has no place in eStargz; write it whole (tar without --sparse), or use compression=gzip", name)
}

// checkEntry says what of an entry the JSON of a TOC cannot hold.
func checkEntry(e *Entry) error {
	const fix = "rename it, or use compression=gzip"
	if n := max(len(e.Name), len(e.LinkName)); n > maxNameSize {
		return fmt.Errorf("tar entry %.100q: a path of %d bytes is longer than Linux takes, %d; shorten it", e.Name, n, maxNameSize)
	}
	if !utf8.ValidString(e.Name) {
		return fmt.Errorf("tar entry %q: the name is not UTF-8, which eStargz requires; %s", e.Name, fix)
	}
	if !utf8.ValidString(e.LinkName) {
		return fmt.Errorf("tar entry %q: the link target %q is not UTF-8, which eStargz requires; %s", e.Name, e.LinkName, fix)
	}
	for name := range e.Xattrs {
		if !utf8.ValidString(name) {
			return fmt.Errorf("tar entry %q: the name of xattr %q is not UTF-8, which eStargz requires; %s", e.Name, name, fix)
		}
	}
	if y := e.ModTime.UTC().Year(); !e.ModTime.IsZero() && (y < 0 || y > 9999) {
		return fmt.Errorf("tar entry %q: a modification time in the year %d has no place in eStargz; touch it", e.Name, y)
	}
	return nil
}
