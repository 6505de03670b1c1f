package lazyfs

import (
	"iter"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

const (
	// forever is how many seconds the kernel may keep what it is told; it knows
	// no longer time than some 70 million years.
	forever = 1 << 40
	// blockSize is what stat(2) recommends for reading, in bytes.
	blockSize = 4096
	// statBlock is the unit of st_blocks, in bytes.
	statBlock = 512
)

// A filesystem answers the kernel from a layer. Writing does not get as far as
// here, because the mount is read-only.
type filesystem struct {
	layer    Layer
	now      func() time.Time
	xattrs   xattrs
	opens    opens
	failures failures
	settled  atomic.Bool
}

func newFilesystem(layer Layer, o Options) *filesystem {
	if o.now == nil {
		o.now = time.Now
	}
	return &filesystem{
		layer:    layer,
		now:      o.now,
		xattrs:   xattrsOf(layer, o.UserXattr),
		failures: failures{now: o.now, of: map[uint32]failure{}},
		opens:    opens{of: map[store.Node]*opened{}, wanted: !o.NoPassthrough && worthPassthrough(layer)},
	}
}

// The kernel calls the root 1, and nothing 0.
func nodeOf(id uint64) store.Node { return store.Node(id - fuse.FUSE_ROOT_ID) }
func idOf(n store.Node) uint64    { return uint64(n) + fuse.FUSE_ROOT_ID }

// answer answers those requests that take no time. A question that it does not
// know it answers with ENOSYS, which the kernel takes as an answer for good to
// most of them.
func (f *filesystem) answer(r *request) unix.Errno {
	switch r.header().Opcode {
	case opInit:
		return f.init(message[fuse.InitIn](r), answer[fuse.InitOut](r))
	case opStatFs:
		return f.statFs(answer[fuse.StatfsOut](r))
	case opDestroy:
		return 0
	}
	n := nodeOf(r.header().NodeId)
	if int(n) >= f.layer.Nodes() {
		return probed(r)
	}
	return f.answerOf(n, r)
}

// answerOf answers those that are about a node of the layer.
func (f *filesystem) answerOf(n store.Node, r *request) unix.Errno {
	switch r.header().Opcode {
	case opLookup:
		return f.lookup(n, name[fuse.InHeader](r), answer[fuse.EntryOut](r))
	case opGetAttr:
		return f.getAttr(n, answer[fuse.AttrOut](r))
	case opReadlink:
		target := f.layer.Readlink(n)
		copy(r.body(len(target)), target)
		return 0
	case opReadDirPlus:
		in := message[fuse.ReadIn](r)
		r.trim(f.list(n, int(in.Offset), r.body(min(int(in.Size), maxList))))
		return 0
	case opGetXAttr:
		return f.getXAttr(r, n, name[fuse.GetXAttrIn](r))
	case opListXAttr:
		return f.listXAttr(r, n)
	case opOpen:
		return f.open(n, answer[fuse.OpenOut](r))
	case opRelease:
		return f.release(n, message[fuse.ReleaseIn](r).Fh)
	}
	return unix.ENOSYS
}

func (f *filesystem) lookup(dir store.Node, name string, out *fuse.EntryOut) unix.Errno {
	if f.isProbe(dir, name) {
		*out = f.probe()
		return 0
	}
	if n, ok := f.layer.Lookup(dir, name); ok {
		*out = entry(n, f.layer.Attr(n))
		return 0
	}
	// That there is no such name is an answer to keep, too.
	out.EntryValid = forever
	return 0
}

func (f *filesystem) getAttr(n store.Node, out *fuse.AttrOut) unix.Errno {
	out.AttrValid = forever
	out.Attr = attr(n, f.layer.Attr(n))
	return 0
}

// A dirent precedes a name in a listing, and follows what a stat of it tells.
type dirent struct {
	Node, Next uint64
	NameSize   uint32
	Type       uint32 // as in readdir(3)
}

const (
	entrySize  = int(unsafe.Sizeof(fuse.EntryOut{}))
	direntSize = int(unsafe.Sizeof(dirent{}))
	// maxList is the size of a listing in bytes. For one of an overlay's merged
	// directories the kernel would take 1 MiB.
	maxList = 128 << 10
	// dots is how many places . and .. take in a listing.
	dots = 2
)

// list writes the entries of a directory from a place on, as many as there is
// room for, each with what a stat of it would ask for next. It returns how many
// bytes they take.
func (f *filesystem) list(dir store.Node, from int, p []byte) (size int) {
	for place, e := range f.entries(dir, from) {
		padded := (len(e.Name) + 7) &^ 7
		next := size + entrySize + direntSize + padded
		if next > len(p) {
			break
		}
		a := f.layer.Attr(e.Node)
		head := (*fuse.EntryOut)(unsafe.Pointer(&p[size]))
		*head = fuse.EntryOut{}
		if place >= dots {
			*head = entry(e.Node, a)
		}
		*(*dirent)(unsafe.Pointer(&p[size+entrySize])) = dirent{
			Node:     idOf(e.Node),
			Next:     uint64(place) + 1,
			NameSize: uint32(len(e.Name)),
			Type:     a.Mode & unix.S_IFMT >> 12,
		}
		clear(p[next-8 : next])
		copy(p[size+entrySize+direntSize:], e.Name)
		size = next
	}
	return size
}

// entries are those of a directory with . and .., from a place on.
func (f *filesystem) entries(dir store.Node, from int) iter.Seq2[int, store.Entry] {
	return func(yield func(int, store.Entry) bool) {
		if from == 0 && !yield(0, store.Entry{Name: ".", Node: dir}) {
			return
		}
		if from <= 1 && !yield(1, store.Entry{Name: "..", Node: f.layer.Parent(dir)}) {
			return
		}
		for place, e := range f.layer.Entries(dir, max(from-dots, 0)) {
			if !yield(place+dots, e) {
				return
			}
		}
	}
}

func entry(n store.Node, a store.Attr) fuse.EntryOut {
	return fuse.EntryOut{NodeId: idOf(n), EntryValid: forever, AttrValid: forever, Attr: attr(n, a)}
}

func attr(n store.Node, a store.Attr) fuse.Attr {
	seconds, nanoseconds := uint64(a.Mtime.Unix()), uint32(a.Mtime.Nanosecond())
	return fuse.Attr{
		Ino:       idOf(n),
		Size:      uint64(a.Size),
		Blocks:    uint64(a.Size+statBlock-1) / statBlock,
		Atime:     seconds,
		Mtime:     seconds,
		Ctime:     seconds,
		Atimensec: nanoseconds,
		Mtimensec: nanoseconds,
		Ctimensec: nanoseconds,
		Mode:      a.Mode,
		Nlink:     a.Links,
		Owner:     fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev:      a.Rdev,
		Blksize:   blockSize,
	}
}

// statFs tells of a full disk. Overlays ask for the length of names.
func (f *filesystem) statFs(out *fuse.StatfsOut) unix.Errno {
	out.Bsize = blockSize
	out.Frsize = blockSize
	out.Files = uint64(f.layer.Nodes())
	out.NameLen = unix.NAME_MAX
	return 0
}
