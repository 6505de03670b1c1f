package record

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountsOf returns the mounts of the filesystem that dir is on, wherever they
// are.
func mountsOf(dir string) ([]*mountinfo.Info, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, err
	}
	return mountinfo.GetMounts(func(info *mountinfo.Info) (skip, stop bool) {
		return info.Major != int(unix.Major(st.Dev)) || info.Minor != int(unix.Minor(st.Dev)), false
	})
}

// overlayOptions returns the mount options of the overlay that is mounted at dir,
// none if there is none. An overlay that dir is only somewhere in is not it: that
// may be the daemon's own root, and its upper directory the host's.
func overlayOptions(dir string) (string, error) {
	mountpoint, err := filepath.EvalSymlinks(dir) // as the kernel tells it
	if err != nil {
		return "", err
	}
	mounts, err := mountsOf(dir)
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.FSType == "overlay" && m.Root == "/" && m.Mountpoint == mountpoint {
			return m.VFSOptions, nil
		}
	}
	return "", nil
}

// LayersOf returns the directories that a mount of BuildKit's shows: those below
// an overlay, mounted already or not, or the one that is bound.
func LayersOf(m mount.Mount) ([]string, error) {
	if m.Type == "overlay" {
		lower, _ := overlayDirs(strings.Join(m.Options, ","))
		return lower, nil
	}
	options, err := overlayOptions(m.Source)
	if err != nil || options == "" {
		return []string{m.Source}, err
	}
	return parseLayers(options)
}

// overlayDirs returns the directories below an overlay, the topmost first, and
// the one it is written to, as its mount options name them.
func overlayDirs(options string) (lower []string, upper string) {
	for option := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		value = unescape(value)
		switch name {
		case "lowerdir":
			lower = append(lower, splitLayers(value)...)
		case "lowerdir+":
			lower = append(lower, value)
		case "upperdir":
			upper = strings.Join(splitLayers(value), ":")
		}
	}
	return lower, upper
}

// parseLayers returns the directories below an overlay, the topmost first.
//
// containerd mounts an overlay whose options would not fit into a page from the
// directory that the layers have in common, with names relative to that, and
// the kernel tells them so. The directory the process writes to, which lies
// beside the layers and has its whole name, says which directory that was.
func parseLayers(options string) ([]string, error) {
	layers, base := overlayDirs(options)
	for ; !exist(base, layers); base = filepath.Dir(base) {
		if base == filepath.Dir(base) {
			return nil, errors.New("the layers of the root filesystem cannot be found where its mount options say")
		}
	}
	return layers, nil
}

// exist tells whether all layers are there, and makes their names whole, if so.
func exist(base string, layers []string) bool {
	whole := make([]string, len(layers))
	for i, layer := range layers {
		if whole[i] = layer; !filepath.IsAbs(layer) {
			whole[i] = filepath.Join(base, layer)
		}
		if _, err := os.Stat(whole[i]); err != nil {
			return false
		}
	}
	copy(layers, whole)
	return true
}

// unescape undoes what the kernel does to a mount option: a comma, a space and
// the like become a backslash and three octal digits. Linux 6.5 and 6.6 do so
// with a colon in a layer's name as well, others with the backslash that the
// name has before it.
func unescape(value string) string {
	var b strings.Builder
	for i := 0; i < len(value); i++ {
		if value[i] == '\\' && i+4 <= len(value) {
			if c, err := strconv.ParseUint(value[i+1:i+4], 8, 8); err == nil {
				if c == ':' {
					b.WriteByte('\\')
				}
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(value[i])
	}
	return b.String()
}

// splitLayers splits at colons; a backslash quotes the character behind it.
func splitLayers(list string) []string {
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
