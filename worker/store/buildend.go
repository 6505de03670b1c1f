package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"slices"
)

// find finds a name in a directory.
func (b *builder) find(dir Node, base string) (*name, bool) {
	h := b.hash(dir, base)
	for i := h; ; i++ {
		at := b.table[i&uint32(len(b.table)-1)]
		if at == 0 {
			return nil, false
		}
		n := &b.names[at-1]
		if n.hash == h && n.dir == dir && string(b.textOf(n)) == base {
			return n, true
		}
	}
}

func (b *builder) textOf(n *name) []byte { return b.base[n.start:][:n.size] }

// hash is seeded: nobody can choose names that collide.
func (b *builder) hash(dir Node, base string) uint32 {
	h := maphash.String(b.seed, base) ^ uint64(dir)*0x9e3779b97f4a7c15
	return uint32(h ^ h>>32)
}

func (b *builder) insert(dir Node, base string, n Node) {
	h := b.hash(dir, base)
	b.names = append(b.names, name{dir: dir, node: n, start: uint32(len(b.base)), size: uint8(len(base)), hash: h})
	b.base = append(b.base, base...)
	if 2*len(b.names) < len(b.table) {
		b.place(h, uint32(len(b.names)))
		return
	}
	b.table = make([]uint32, 2*len(b.table))
	for i := range b.names {
		b.place(b.names[i].hash, uint32(i+1))
	}
}

func (b *builder) place(h, value uint32) {
	i := h & uint32(len(b.table)-1)
	for b.table[i] != 0 {
		i = (i + 1) & uint32(len(b.table)-1)
	}
	b.table[i] = value
}

// finish makes the index. But for Payload, all that is in it follows from the TOC,
// whose digest is right: where the TOC starts is what one registry says, and the
// index serves those who read from others as well.
func (b *builder) finish() (*index, error) {
	if err := b.endFile(); err != nil {
		return nil, err
	}
	last := b.bounded
	if err := b.endMember(b.payload); err != nil {
		return nil, err
	}
	for i := last; i < len(b.chunks); i++ {
		b.chunks[i].Length = uint32(b.chunks[i].mostCompressed())
	}
	b.table = nil
	b.dropReplaced()
	x := &index{nodes: b.nodes, chunks: b.chunks, text: b.text}
	x.sortNames(b)
	x.sortChunks()
	x.header = header{
		Flags:     b.flags,
		Nodes:     uint32(len(x.nodes)),
		Chunks:    uint32(len(x.chunks)),
		Entries:   uint32(len(x.entries)),
		Names:     uint32(len(x.names)),
		Text:      uint32(len(x.text)),
		Prefetch:  uint32(b.prefetch),
		Large:     b.large,
		SmallSize: b.small,
		Payload:   b.payload,
	}
	return x, nil
}

// sortNames makes the entries of the directories, each in the order of names.
func (x *index) sortNames(b *builder) {
	next := uint32(0)
	for i := range x.nodes {
		if d := &x.nodes[i]; d.isDir() {
			d.First = next
			next += d.Count
		}
	}
	order, filled := make([]uint32, len(b.names)), make([]uint32, len(x.nodes))
	for i, n := range b.names {
		order[x.nodes[n.dir].First+filled[n.dir]] = uint32(i)
		filled[n.dir]++
	}
	x.entries = make([]entry, 0, len(order)+1)
	x.names = make([]byte, 0, len(b.base))
	for i := range x.nodes {
		d := &x.nodes[i]
		if !d.isDir() {
			continue
		}
		in := order[d.First:][:d.Count]
		slices.SortFunc(in, func(i, j uint32) int {
			return bytes.Compare(b.textOf(&b.names[i]), b.textOf(&b.names[j]))
		})
		for _, i := range in {
			x.entries = append(x.entries, entry{Name: uint32(len(x.names)), Node: b.names[i].node})
			x.names = append(x.names, b.textOf(&b.names[i])...)
		}
	}
	x.entries = append(x.entries, entry{Name: uint32(len(x.names))})
}

// dropReplaced drops the nodes whose names later entries took, with their
// chunks, and numbers the others anew: each node of an index has a name, and
// whoever goes by numbers finds the files that others find by names.
func (b *builder) dropReplaced() {
	number, kept := make([]Node, len(b.nodes)), b.nodes[:0]
	for i, n := range b.nodes {
		if n.Links > 0 {
			number[i] = Node(len(kept))
			kept = append(kept, n)
		}
	}
	if len(kept) == len(number) {
		return
	}
	isKept := func(old Node) bool { return number[old] > 0 || old == Root }
	b.nodes = kept
	for i := range b.nodes {
		b.nodes[i].Parent = uint32(number[b.nodes[i].Parent])
	}
	for i := range b.names {
		b.names[i].node, b.names[i].dir = number[b.names[i].node], number[b.names[i].dir]
	}
	chunks, before := b.chunks[:0], b.prefetch
	for i, c := range b.chunks {
		if !isKept(c.Node) {
			if i < before {
				b.prefetch--
			}
			continue
		}
		c.Node = number[c.Node]
		if c.At == 0 {
			b.nodes[c.Node].First = uint32(len(chunks))
		}
		chunks = append(chunks, c)
	}
	b.chunks = chunks
}

// sortChunks makes the table that finds chunks by their digest. Of one digest
// they are in the order of the blob.
func (x *index) sortChunks() {
	x.sorted = make([]uint32, len(x.chunks))
	for i := range x.sorted {
		x.sorted[i] = uint32(i)
	}
	slices.SortFunc(x.sorted, func(i, j uint32) int {
		return cmp.Or(bytes.Compare(x.chunks[i].Digest[:], x.chunks[j].Digest[:]), cmp.Compare(i, j))
	})
	x.prefixes = make([]uint64, len(x.chunks))
	for i, c := range x.sorted {
		x.prefixes[i] = prefixOf(&x.chunks[c].Digest)
	}
}

func prefixOf(digest *[32]byte) uint64 { return binary.BigEndian.Uint64(digest[:]) }
