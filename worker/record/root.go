package record

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/executor"
	"github.com/moby/sys/mountinfo"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// mounted is a Mountable that is mounted on the host.
type mounted struct {
	dir     string
	mounts  []mount.Mount
	idmap   *user.IdentityMapping
	release func() error
}

// mountHere mounts src at a directory of its own, so that the superblock is at
// hand. The caller closes it.
func mountHere(ctx context.Context, src executor.Mountable) (_ *mounted, err error) {
	ref, err := src.Mount(ctx, false)
	if err != nil {
		return nil, err
	}
	mounts, release, err := ref.Mount()
	if err != nil {
		return nil, err
	}
	m := &mounted{mounts: mounts, idmap: ref.IdentityMapping(), release: release}
	if m.dir, err = os.MkdirTemp("", "buildkitd-esgz-record"); err != nil {
		return nil, errors.Join(err, m.close())
	}
	if err := mount.All(mounts, m.dir); err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

// close unmounts, even if somebody has a file open still: what is left of the
// mount goes with that file.
func (m *mounted) close() error {
	var err error
	if m.dir != "" {
		if err = mount.UnmountAll(m.dir, unix.MNT_DETACH); err == nil {
			err = os.Remove(m.dir)
		}
	}
	if m.release != nil {
		err = errors.Join(err, m.release())
	}
	return err
}

// Mount and the two methods below make it a Mountable of the same superblock.
func (m *mounted) Mount(context.Context, bool) (executor.MountableRef, error) {
	return rebound{m}, nil
}

type rebound struct{ m *mounted }

// Mount returns a bind mount. It inherits the flags of the mount it is made
// from, so that a read-only root stays read-only.
func (r rebound) Mount() ([]mount.Mount, func() error, error) {
	bind := mount.Mount{Type: "bind", Source: r.m.dir, Options: []string{"rbind"}}
	return []mount.Mount{bind}, func() error { return nil }, nil
}

func (r rebound) IdentityMapping() *user.IdentityMapping { return r.m.idmap }

// ownSuperblock says why the files of the mount cannot be told from others, if
// so.
func (m *mounted) ownSuperblock() error {
	if len(m.mounts) == 0 {
		return errors.New("nothing is mounted as the root filesystem")
	}
	last := &m.mounts[len(m.mounts)-1]
	if last.Type != "bind" && last.Type != "rbind" && last.Type != "" {
		return nil
	}
	// BuildKit mounts an overlay once and gives out bind mounts of it.
	overlay, err := overlayAt(last.Source)
	if err != nil {
		return err
	}
	if overlay == nil {
		return errors.New("the root filesystem is a bind mount, and only those of an overlay can be recorded")
	}
	last.Options = strings.Split(overlay.VFSOptions, ",")
	return nil
}

// overlayAt returns the overlay that is mounted at dir, nil if there is none.
func overlayAt(dir string) (*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil {
		return nil, fmt.Errorf("mounts of the root filesystem: %w", err)
	}
	for _, m := range slices.Backward(mounts) {
		if m.FSType == "overlay" {
			return m, nil
		}
	}
	return nil, nil
}

// lowers returns the directories below an overlay, the topmost first.
func (m *mounted) lowers() []string {
	var dirs []string
	for _, option := range m.mounts[len(m.mounts)-1].Options {
		if list, ok := strings.CutPrefix(option, "lowerdir="); ok {
			dirs = append(dirs, splitLowers(list)...)
		} else if dir, ok := strings.CutPrefix(option, "lowerdir+="); ok {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// splitLowers splits at colons; a backslash quotes the character behind it.
func splitLowers(list string) []string {
	var dirs []string
	var dir strings.Builder
	for i := 0; i < len(list); i++ {
		switch {
		case list[i] == '\\' && i+1 < len(list):
			i++
			dir.WriteByte(list[i])
		case list[i] == ':':
			dirs = append(dirs, dir.String())
			dir.Reset()
		default:
			dir.WriteByte(list[i])
		}
	}
	return append(dirs, dir.String())
}
