package estargz

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"

	digest "github.com/opencontainers/go-digest"
)

// FindTOC returns where the TOC starts in a blob of size bytes, by the footer
// at the end of its last bytes. FooterSize of them are enough.
func FindTOC(tail []byte, size int64) (int64, error) {
	if int64(len(tail)) > size {
		return 0, fmt.Errorf("estargz: %d bytes from the end of a blob of %d", len(tail), size)
	}
	tail = tail[max(0, len(tail)-FooterSize):]
	f, err := readFooter(&tailReader{tail, size}, size)
	if err != nil {
		return 0, fmt.Errorf("estargz: %w", err)
	}
	if f.external {
		return 0, fmt.Errorf("estargz: %w", ErrExternalTOC)
	}
	return f.tocOffset, nil
}

// A tailReader is a blob of which the end alone is here.
type tailReader struct {
	tail []byte
	size int64
}

func (t *tailReader) ReadAt(p []byte, off int64) (int, error) {
	start := t.size - int64(len(t.tail))
	if off < start {
		return 0, fmt.Errorf("only the last %d bytes are here", len(t.tail))
	}
	return bytes.NewReader(t.tail).ReadAt(p, off-start)
}

// ReadTOC reads the TOC that r starts with and hands out its entries in their
// order, names cleaned, each checked for itself: not against the others, and
// not against the blob, of which payload bytes are in front of the TOC. Of all the
// entries one is in memory at a time, and it is the caller's until each returns.
//
// Whether the TOC has the digest that is wanted is known at the end. What each
// did until then must not count when ReadTOC returns an error.
func ReadTOC(r io.Reader, payload int64, want digest.Digest, each func(*Entry) error) error {
	var got digest.Digest
	toc, err := openTOC(r, payload)
	if err == nil {
		got, err = readTOC(toc, &allowance{payload: payload, dense: true}, each)
	}
	if err == nil && got != want {
		err = fmt.Errorf("its digest is %s, want %s", got, want)
	}
	if err != nil {
		return fmt.Errorf("estargz: TOC: %w", err)
	}
	return nil
}

// readTOC decodes a TOC and returns its digest.
func readTOC(json io.Reader, allowed *allowance, each func(*Entry) error) (digest.Digest, error) {
	sum := sha256.New()
	toc := io.TeeReader(json, sum)
	var file string // that chunks continue
	if err := decodeTOC(toc, allowed, func(e *Entry) error {
		if err := e.clean(&file); err != nil {
			return err
		}
		return each(e)
	}); err != nil {
		return "", err
	}
	if _, err := io.Copy(io.Discard, toc); err != nil {
		return "", err
	}
	return digest.NewDigest(digest.SHA256, sum), nil
}

// clean cleans the name of an entry and checks what can be checked of it
// alone. A chunk takes the name of the regular file that it continues.
func (e *Entry) clean(file *string) error {
	if e.Type == TypeChunk {
		if e.Name = *file; e.Name == "" {
			return errors.New("a chunk of no file")
		}
		return nil
	}
	e.Name, *file = CleanName(e.Name), ""
	if err := checkType(e); err != nil {
		return err
	}
	if e.Type == TypeReg {
		*file = e.Name
	}
	return nil
}

func checkType(e *Entry) error {
	switch e.Type {
	case TypeDir, TypeReg, TypeSymlink, TypeHardlink, TypeChar, TypeBlock, TypeFifo:
	default:
		return fmt.Errorf("unknown type %q", e.Type)
	}
	if e.Size < 0 {
		return fmt.Errorf("size %d", e.Size)
	}
	if e.Name == "" && e.Type != TypeDir {
		return fmt.Errorf("the root is a %s", e.Type)
	}
	if n := max(len(e.Name), len(e.LinkName)); n > maxNameSize {
		return fmt.Errorf("a name of %d bytes, more than %d", n, maxNameSize)
	}
	if strings.IndexByte(e.Name, 0) >= 0 {
		return errors.New("the name has a zero byte")
	}
	return nil
}
