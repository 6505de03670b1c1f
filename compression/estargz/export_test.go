package estargz

import "bytes"

// WithoutMemberEnd copies an entry without what the TOC does not say.
func WithoutMemberEnd(e *Entry) *Entry {
	c := *e
	c.memberEnd = 0
	return &c
}

var FooterBytes = footerBytes

// ReadFooter returns what the footer of a blob says.
func ReadFooter(blob []byte) (tocOffset int64, external bool, err error) {
	f, err := readFooter(bytes.NewReader(blob), int64(len(blob)))
	return f.tocOffset, f.external, err
}
