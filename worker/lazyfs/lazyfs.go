// Package lazyfs shows a stored layer as a read-only filesystem by FUSE, to
// stand below an overlay. It answers from the layer's index and leaves it to
// the layer to have contents or to get them; it knows no registry. The
// snapshotter's mounter calls it.
//
// # Asked once, or never
//
// A layer never changes, so the kernel may keep all it was ever told: names,
// names that do not exist, attributes, targets of symlinks, directories and
// pages. What is warm is as fast as any other filesystem. A node's number in
// the layer is its number in the kernel, so that nothing has to be remembered
// here, and nothing forgotten.
//
// What has no answer is answered with ENOSYS, which the kernel takes as an
// answer for good: opening and closing of directories, flushing and, where
// there is no passthrough, opening of files.
//
// # Passthrough
//
// A large file whose bytes are all here can be read by the kernel from its file
// on disk without asking anybody. For that each opening of a file has to be
// answered, of small ones too, which doubles the time of a tar whose files are
// in the page cache. So it is for layers that consist of huge files mostly.
//
// # Reading ahead
//
// The kernel does not read ahead from one small file to the next. The package
// does it for who reads one file after another, see ahead.
package lazyfs

import (
	"context"
	"iter"
	"os"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/worker/store"
)

// A Layer is what a filesystem shows. It does not change, but for which of its
// contents are present. *store.Layer is one.
type Layer interface {
	// Nodes is the number of nodes; theirs are the numbers below it.
	Nodes() int
	Attr(store.Node) store.Attr
	Lookup(dir store.Node, name string) (store.Node, bool)
	// Entries are those of a directory from a place on, with their places and
	// without . and .. .
	Entries(dir store.Node, from int) iter.Seq2[int, store.Entry]
	// Parent is that of a directory; the root is its own.
	Parent(dir store.Node) store.Node
	Readlink(store.Node) string
	Xattrs(store.Node) iter.Seq2[string, []byte]
	HasXattrs() bool
	Opaque(dir store.Node) bool
	HasOpaque() bool
	// Here tells whether a part of a file is present.
	Here(n store.Node, off, size int64) bool
	// Wait waits until a part of a file is present, or the context is done. Who
	// does not want to wait asks with a context that is, and may find it present
	// the next time.
	Wait(ctx context.Context, n store.Node, off, size int64) error
	// ReadPresent reads what is present.
	ReadPresent(n store.Node, p []byte, off int64) (int, error)
	// ReadAt does both.
	ReadAt(ctx context.Context, n store.Node, p []byte, off int64) (int, error)
	// Complete tells whether all contents are present.
	Complete() bool
	// Backing opens the file on disk that holds a large file and nothing else,
	// if it is complete.
	Backing(store.Node) (*os.File, bool)
}

// Options are those of a mount. The zero value is good for a daemon that runs
// as root.
type Options struct {
	// UserXattr is set when the overlay above is mounted with userxattr, as
	// rootless daemons do: opaque directories then say so in
	// user.overlay.opaque instead of trusted.overlay.opaque.
	UserXattr bool
	// NoPassthrough reads large files through the daemon, too. It is only
	// needed to see what that costs: where the kernel or the daemon's
	// privileges do not allow passthrough, it is found out.
	NoPassthrough bool

	now func() time.Time // of tests
}

var _ Layer = (*store.Layer)(nil)
