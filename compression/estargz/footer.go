package estargz

import (
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
)

// A footer is an empty gzip member whose extra field says where the TOC is:
// 10 bytes of gzip header, 2 of XLEN, the extra field, 5 of an empty stored
// deflate block, 8 of checksum and size.
const (
	gzipHeaderSize   = 10
	emptyDeflateSize = 5
	gzipTrailerSize  = 8
	footerFrame      = gzipHeaderSize + 2 + emptyDeflateSize + gzipTrailerSize

	footerMagic   = "STARGZ"
	externalMagic = "STARGZEXTERNALTOC"
	hexOffsetSize = 16
	subfieldFrame = 4 // 'S', 'G' and the length of what follows

	// FooterSize is the size of the footer of eStargz: 25 + 4 + 16 + 6 = 51.
	FooterSize = footerFrame + subfieldFrame + hexOffsetSize + len(footerMagic)

	// The footer of stargz, the format before eStargz, has no subfield: 47.
	legacyFooterSize = footerFrame + hexOffsetSize + len(footerMagic)

	// The footer of a blob whose TOC lies elsewhere: 25 + 4 + 17 = 46.
	externalFooterSize = footerFrame + subfieldFrame + len(externalMagic)
)

// footer is what the last bytes of a blob say.
type footer struct {
	size      int64 // of the footer itself
	tocOffset int64 // in the blob; unused when external
	external  bool  // the TOC lies outside the blob
}

func footerBytes(tocOffset int64) []byte {
	extra := make([]byte, 0, FooterSize)
	extra = append(extra, 'S', 'G', hexOffsetSize+byte(len(footerMagic)), 0)
	extra = fmt.Appendf(extra, "%016x%s", tocOffset, footerMagic)

	p := []byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff}
	p = binary.LittleEndian.AppendUint16(p, uint16(len(extra)))
	p = append(p, extra...)
	p = append(p, 1, 0, 0, 0xff, 0xff)
	return append(p, make([]byte, gzipTrailerSize)...)
}

// readFooter finds out which of the known footers ends a blob of size bytes.
func readFooter(r io.ReaderAt, size int64) (footer, error) {
	if size < int64(externalFooterSize) {
		return footer{}, fmt.Errorf("blob of %d bytes is smaller than a footer", size)
	}
	tail := make([]byte, min(size, int64(FooterSize)))
	if _, err := r.ReadAt(tail, size-int64(len(tail))); err != nil && err != io.EOF {
		return footer{}, fmt.Errorf("footer at %d: %w", size-int64(len(tail)), err)
	}
	f, err := parseFooter(tail)
	if err != nil {
		return footer{}, fmt.Errorf("footer at %d: %w", size-int64(len(tail)), err)
	}
	if !f.external && f.tocOffset >= size-f.size {
		return footer{}, fmt.Errorf("footer at %d: TOC offset %d is outside of the blob", size-f.size, f.tocOffset)
	}
	return f, nil
}

func parseFooter(tail []byte) (footer, error) {
	for _, size := range []int{FooterSize, legacyFooterSize, externalFooterSize} {
		if len(tail) < size {
			continue
		}
		extra, ok := footerExtra(tail[len(tail)-size:])
		if !ok {
			continue
		}
		switch size {
		case FooterSize, externalFooterSize:
			if string(extra[:2]) != "SG" || int(binary.LittleEndian.Uint16(extra[2:])) != len(extra)-subfieldFrame {
				continue
			}
			extra = extra[subfieldFrame:]
		}
		if string(extra) == externalMagic {
			return footer{size: int64(size), external: true}, nil
		}
		if string(extra[hexOffsetSize:]) != footerMagic {
			continue
		}
		offset, err := strconv.ParseUint(string(extra[:hexOffsetSize]), 16, 63)
		if err != nil {
			return footer{}, fmt.Errorf("TOC offset: %w", err)
		}
		return footer{size: int64(size), tocOffset: int64(offset)}, nil
	}
	return footer{}, fmt.Errorf("not one of eStargz")
}

// footerExtra returns the extra field of p if p is an empty gzip member with
// just that field, filling it exactly. The bytes behind the field are not
// looked at: writers differ in how they store nothing.
func footerExtra(p []byte) ([]byte, bool) {
	const flagExtra = 4
	if p[0] != 0x1f || p[1] != 0x8b || p[2] != 8 || p[3] != flagExtra {
		return nil, false
	}
	n := int(binary.LittleEndian.Uint16(p[gzipHeaderSize:]))
	if n != len(p)-footerFrame {
		return nil, false
	}
	return p[gzipHeaderSize+2:][:n], true
}
