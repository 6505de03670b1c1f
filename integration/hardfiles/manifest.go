package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// manifest prints one line for each file below the directories: its name and
// all that an image promises about it.
func manifest(args []string) error {
	flags := flag.NewFlagSet("manifest", flag.ExitOnError)
	root := flags.String("root", "/", "directory that holds the root filesystem")
	if err := flags.Parse(args); err != nil {
		return err
	}
	p := &printer{root: *root, out: bufio.NewWriter(os.Stdout), first: map[inode]string{}}
	for _, dir := range flags.Args() {
		if err := filepath.WalkDir(filepath.Join(*root, dir), p.print); err != nil {
			return err
		}
	}
	return p.out.Flush()
}

type inode struct{ dev, ino uint64 }

type printer struct {
	root  string
	out   *bufio.Writer
	first map[inode]string // the first name of each file with several names
}

func (p *printer) print(path string, _ fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	name, err := filepath.Rel(p.root, path)
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	line := []string{
		fmt.Sprintf("%q", name),
		fmt.Sprintf("mode=%o owner=%d:%d mtime=%d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec),
	}
	details, err := p.details(path, name, info, st)
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	attrs, err := xattrs(path)
	if err != nil {
		return fmt.Errorf("xattrs of %q: %w", name, err)
	}
	line = append(append(line, details...), attrs...)
	_, err = fmt.Fprintln(p.out, strings.Join(line, " "))
	return err
}

func (p *printer) details(path, name string, info fs.FileInfo, st *syscall.Stat_t) ([]string, error) {
	switch {
	case info.Mode().IsRegular():
		sum, err := contentOf(path)
		if err != nil {
			return nil, err
		}
		return append([]string{fmt.Sprintf("size=%d sha256=%s", st.Size, sum)}, p.links(name, st)...), nil
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		return []string{fmt.Sprintf("target=%q", target)}, err
	case info.Mode()&fs.ModeDevice != 0:
		return []string{fmt.Sprintf("device=%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))}, nil
	}
	return nil, nil
}

func contentOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8]), nil
}

// links names the first of several names of the same file. How many there are
// is no promise: deleting one of them in a layer above changes it or not.
func (p *printer) links(name string, st *syscall.Stat_t) []string {
	if st.Nlink < 2 {
		return nil
	}
	id := inode{uint64(st.Dev), st.Ino}
	if first, ok := p.first[id]; ok {
		return []string{fmt.Sprintf("link=%q", first)}
	}
	p.first[id] = name
	return nil
}

// xattrs leaves out those that say something about the host: its SELinux labels
// and the marks of its overlay.
func xattrs(path string) ([]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	var attrs []string
	for _, name := range names {
		if name == "security.selinux" || strings.Contains(name, "overlay.") || strings.HasPrefix(name, "user.umoci") {
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, fmt.Sprintf("%s=%q", name, buf[:n]))
	}
	return attrs, nil
}
