package lazyfs

import (
	"iter"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// xattrs are those that a layer shows.
type xattrs struct {
	layer Layer
	// overlay is the prefix of those that overlayfs takes for its own. What a
	// layer has below it is hidden: it could send overlayfs elsewhere.
	overlay string
}

func xattrsOf(layer Layer, user bool) xattrs {
	x := xattrs{layer, "trusted.overlay."}
	if user {
		x.overlay = "user.overlay."
	}
	return x
}

// opaque is the name of the one that marks an opaque directory.
func (x xattrs) opaque() string { return x.overlay + "opaque" }

// of a node, with that of an opaque directory. There is one name for it, not
// both: BuildKit's differ takes the other one for a change.
func (x xattrs) of(n store.Node) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		if x.layer.Opaque(n) && !yield(x.opaque(), []byte("y")) {
			return
		}
		for name, value := range x.layer.Xattrs(n) {
			if !strings.HasPrefix(name, x.overlay) && !yield(name, value) {
				return
			}
		}
	}
}

// getXAttr never answers with ENOSYS, not even for a layer without any xattr.
// The kernel would not ask again, which saves a question of overlayfs for each
// file when it is first looked up, 10 µs. But programs would see EOPNOTSUPP where
// those on an unpacked layer see ENODATA.
func (f *filesystem) getXAttr(r *request, n store.Node, want string) unix.Errno {
	for name, value := range f.xattrs.of(n) {
		if name == want {
			return fill(r, value)
		}
	}
	return unix.ENODATA
}

func (f *filesystem) listXAttr(r *request, n store.Node) unix.Errno {
	var list []byte
	for name := range f.xattrs.of(n) {
		list = append(append(list, name...), 0)
	}
	return fill(r, list)
}

// fill answers with a value, or with its size if that is what is wanted.
func fill(r *request, value []byte) unix.Errno {
	room := int(message[fuse.GetXAttrIn](r).Size)
	switch {
	case room == 0:
		answer[fuse.GetXAttrOut](r).Size = uint32(len(value))
	case room < len(value):
		return unix.ERANGE
	default:
		copy(r.body(len(value)), value)
	}
	return 0
}
