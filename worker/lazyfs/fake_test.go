package lazyfs

import (
	"context"
	"io"
	"iter"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// A fake is a layer in memory.
type fake struct {
	nodes []fakeNode
	// before, if set, is called by ReadAt before it reads, and may wait or fail.
	before func(ctx context.Context, n store.Node, off int64) error
	// here, if set, says whether what starts at an offset of a file is present. If
	// not, it is unless there is a before.
	here func(off int64) bool

	whole atomic.Bool

	mu      sync.Mutex
	backing map[store.Node]*os.File // complete large files
}

type fakeNode struct {
	store.Attr
	parent  store.Node
	entries []store.Entry
	names   map[string]store.Node
	target  string
	xattrs  map[string]string
	opaque  bool
	content io.ReaderAt
}

var _ Layer = (*fake)(nil)

func (f *fake) Complete() bool { return f.whole.Load() }

// A part adds something to a fake.
type part func(*fake)

var someTime = time.Unix(1700000000, 123456789)

// layerOf makes a layer of parts, of which parents come before their children.
func layerOf(parts ...part) *fake {
	f := &fake{backing: map[store.Node]*os.File{}}
	f.nodes = append(f.nodes, fakeNode{Attr: store.Attr{Mode: unix.S_IFDIR | 0o755, Links: 2, Mtime: someTime}, names: map[string]store.Node{}})
	for _, p := range parts {
		p(f)
	}
	return f
}

func node(name string, n fakeNode) part {
	return func(f *fake) {
		if n.Links == 0 {
			n.Links = 1
		}
		if n.Mtime.IsZero() {
			n.Mtime = someTime
		}
		if n.Mode&unix.S_IFMT == unix.S_IFDIR {
			n.names = map[string]store.Node{}
			n.Links = 2
		}
		parent := f.find(path.Dir(name))
		n.parent = parent
		f.nodes = append(f.nodes, n)
		f.name(parent, path.Base(name), store.Node(len(f.nodes)-1))
	}
}

func (f *fake) name(dir store.Node, name string, n store.Node) {
	d := &f.nodes[dir]
	d.entries = append(d.entries, store.Entry{Name: name, Node: n})
	d.names[name] = n
	if f.nodes[n].Mode&unix.S_IFMT == unix.S_IFDIR {
		d.Links++
	}
}

func dir(name string) part {
	return node(name, fakeNode{Attr: store.Attr{Mode: unix.S_IFDIR | 0o755}})
}

func opaqueDir(name string) part {
	return node(name, fakeNode{Attr: store.Attr{Mode: unix.S_IFDIR | 0o755}, opaque: true})
}

func file(name, content string) part {
	return node(name, fakeNode{
		Attr:    store.Attr{Mode: unix.S_IFREG | 0o644, Size: int64(len(content))},
		content: strings.NewReader(content),
	})
}

// large is a file of so many bytes that counts as large.
func large(name string, size int64) part {
	return node(name, fakeNode{Attr: store.Attr{Mode: unix.S_IFREG | 0o644, Size: size}, content: pattern(size)})
}

// A pattern is so many bytes of which each depends on where it stands.
type pattern int64

func (p pattern) ReadAt(b []byte, off int64) (int, error) {
	if off >= int64(p) {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), int64(p)-off)]
	for i := range b {
		at := off + int64(i)
		b[i] = byte(at ^ at>>8 ^ at>>16)
	}
	return len(b), nil
}

func symlink(name, target string) part {
	return node(name, fakeNode{Attr: store.Attr{Mode: unix.S_IFLNK | 0o777, Size: int64(len(target))}, target: target})
}

func device(name string, mode uint32, major, minor uint32) part {
	return node(name, fakeNode{Attr: store.Attr{Mode: mode, Rdev: uint32(unix.Mkdev(major, minor))}})
}

func whiteout(name string) part { return device(name, unix.S_IFCHR, 0, 0) }

// owned gives a file to somebody, with a mode that says more than permissions.
func owned(name string, uid, gid, mode uint32) part {
	return func(f *fake) {
		n := &f.nodes[f.find(name)]
		n.UID, n.GID, n.Mode = uid, gid, n.Mode&unix.S_IFMT|mode
	}
}

func hardLink(name, target string) part {
	return func(f *fake) {
		n := f.find(target)
		f.nodes[n].Links++
		f.name(f.find(path.Dir(name)), path.Base(name), n)
	}
}

func xattr(name, key, value string) part {
	return func(f *fake) {
		n := &f.nodes[f.find(name)]
		if n.xattrs == nil {
			n.xattrs = map[string]string{}
		}
		n.xattrs[key] = value
	}
}

func (f *fake) find(name string) store.Node {
	n := store.Root
	for part := range strings.SplitSeq(name, "/") {
		if part == "." || part == "" {
			continue
		}
		var ok bool
		if n, ok = f.Lookup(n, part); !ok {
			panic("no " + name + " in the layer")
		}
	}
	return n
}

func (f *fake) Nodes() int                        { return len(f.nodes) }
func (f *fake) Attr(n store.Node) store.Attr      { return f.nodes[n].Attr }
func (f *fake) Parent(dir store.Node) store.Node  { return f.nodes[dir].parent }
func (f *fake) Readlink(n store.Node) string      { return f.nodes[n].target }
func (f *fake) Opaque(dir store.Node) bool        { return f.nodes[dir].opaque }
func (f *fake) has(is func(n fakeNode) bool) bool { return slices.ContainsFunc(f.nodes, is) }
func (f *fake) HasXattrs() bool                   { return f.has(func(n fakeNode) bool { return n.xattrs != nil }) }
func (f *fake) HasOpaque() bool                   { return f.has(func(n fakeNode) bool { return n.opaque }) }
func (f *fake) Lookup(dir store.Node, name string) (store.Node, bool) {
	n, ok := f.nodes[dir].names[name]
	return n, ok
}

func (f *fake) Entries(dir store.Node, from int) iter.Seq2[int, store.Entry] {
	return func(yield func(int, store.Entry) bool) {
		for i := from; i < len(f.nodes[dir].entries); i++ {
			if !yield(i, f.nodes[dir].entries[i]) {
				return
			}
		}
	}
}

func (f *fake) Xattrs(n store.Node) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for name, value := range f.nodes[n].xattrs {
			if !yield(name, []byte(value)) {
				return
			}
		}
	}
}

func (f *fake) Here(_ store.Node, off, _ int64) bool {
	if f.here != nil {
		return f.here(off)
	}
	return f.before == nil
}

func (f *fake) ReadAt(ctx context.Context, n store.Node, p []byte, off int64) (int, error) {
	if err := f.Wait(ctx, n, off, int64(len(p))); err != nil {
		return 0, err
	}
	return f.ReadPresent(n, p, off)
}

func (f *fake) Wait(ctx context.Context, n store.Node, off, _ int64) error {
	if f.before != nil {
		return f.before(ctx, n, off)
	}
	return nil
}

func (f *fake) ReadPresent(n store.Node, p []byte, off int64) (int, error) {
	return f.nodes[n].content.ReadAt(p, off)
}

func (f *fake) Backing(n store.Node) (*os.File, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	file, ok := f.backing[n]
	if !ok {
		return nil, false
	}
	again, err := os.Open(file.Name())
	return again, err == nil
}

// complete gives a file its own file on disk.
func (f *fake) complete(t testing.TB, name string) {
	n := f.find(name)
	file, err := os.Create(path.Join(t.TempDir(), "backing"))
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	_, err = io.Copy(file, io.NewSectionReader(f.nodes[n].content, 0, f.nodes[n].Size))
	require.NoError(t, err)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.backing[n] = file
}
