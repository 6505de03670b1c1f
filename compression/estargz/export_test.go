package estargz

import (
	"bytes"
	"io"
)

// WithoutMemberEnd copies an entry without what the TOC does not say.
func WithoutMemberEnd(e *Entry) *Entry {
	c := *e
	c.memberEnd = 0
	return &c
}

var FooterBytes = footerBytes

// OrderTar returns a tar in another order.
func OrderTar(tar []byte, order []string) ([]byte, error) {
	parts, err := scanTar(bytes.NewReader(tar))
	if err != nil {
		return nil, err
	}
	first, landmark, rest := parts.inOrder(order)
	return io.ReadAll(orderedTar(bytes.NewReader(tar), first, landmark, rest))
}

// ReadFooter returns what the footer of a blob says.
func ReadFooter(blob []byte) (tocOffset int64, external bool, err error) {
	f, err := readFooter(bytes.NewReader(blob), int64(len(blob)))
	return f.tocOffset, f.external, err
}
