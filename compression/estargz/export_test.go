package estargz

import (
	"bytes"
	"io"
	"strings"
	"time"
)

// WithoutMemberEnd copies an entry without what the TOC does not say.
func WithoutMemberEnd(e *Entry) *Entry {
	c := *e
	c.memberEnd, c.at = 0, 0
	return &c
}

var FooterBytes = footerBytes

// OrderTar returns a tar in another order.
func OrderTar(tar []byte, order []string) ([]byte, error) {
	parts, err := scanTar(bytes.NewReader(tar), nil, &work{}, newRoom(1<<40, nil))
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

// Children returns the names in a directory, each with its entry.
func (r *Reader) Children(name string) map[string]*Entry {
	children := map[string]*Entry{}
	add := func(path string) {
		if path != "" && parentName(path) == CleanName(name) {
			children[strings.TrimPrefix(path[len(parentName(path)):], "/")], _ = r.Lookup(path)
		}
	}
	for path := range r.files {
		add(path)
	}
	for path := range r.implied {
		add(path)
	}
	return children
}

// Work is about how many nanoseconds of work were counted for a blob: opening it,
// and what was done with it since.
func (r *Reader) Work() int64 {
	return 4*r.work.inflated.Load() + 1000*int64(r.allowance.entries+r.work.entries) + 50*int64(r.work.lookups)
}

// Scan reads a tar as a writer does, and returns the work in the same unit.
func Scan(tar io.Reader) (int64, error) {
	nothing := func(*batch) {}
	s := &splitter{chunk: DefaultChunkSize, submit: nothing, next: func(n int) (*batch, error) {
		return &batch{tar: make([]byte, 0, max(n, batchSize))}, nil
	}}
	in := &counter{r: tar}
	err := s.split(in)
	return 4*in.n + 1000*int64(s.toc.count) + 50*int64(s.toc.lookups), err
}

// WithPatience has a pool lend what is reserved for inputs that stall for so long.
func (p *Pool) WithPatience(after time.Duration) *Pool {
	p.after = after
	return p
}
