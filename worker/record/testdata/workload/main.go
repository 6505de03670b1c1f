// Command workload is what the tests run in containers, where a shell cannot do
// it: read and map parts of files, and handle signals.
package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("no command"))
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "pread":
		pread(args[0], number(args[1]), number(args[2]))
	case "direct":
		direct(args[0], number(args[1]), number(args[2]))
	case "mmap":
		mmap(args[0], number(args[1]), number(args[2]))
	case "chroot":
		fail(syscall.Chroot(args[0]))
		_, err := os.ReadFile(args[1])
		fail(err)
	case "fill":
		fill(args[0])
	case "walk":
		walk(args[0])
	case "stubborn":
		stubborn()
	case "polite":
		polite()
	case "crash":
		_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
		var p *int
		*p = 1
	}
}

func pread(name string, offset, size int64) {
	f, err := os.Open(name)
	fail(err)
	_, err = f.ReadAt(make([]byte, size), offset)
	fail(err)
}

// direct reads past the page cache.
func direct(name string, offset, size int64) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_DIRECT, 0)
	fail(err)
	// A mapping is aligned as the disk wants it.
	buffer, err := syscall.Mmap(-1, 0, int(size), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
	fail(err)
	_, err = f.ReadAt(buffer, offset)
	fail(err)
}

// mmap touches a byte of each page from offset on.
func mmap(name string, offset, size int64) {
	f, err := os.Open(name)
	fail(err)
	info, err := f.Stat()
	fail(err)
	// At an address where huge pages can be mapped as well.
	const huge = 2 << 20
	space, err := unix.Mmap(-1, 0, int(info.Size())+huge, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	fail(err)
	skip := huge - uintptr(unsafe.Pointer(&space[0]))%huge
	data := space[skip : skip+uintptr(info.Size())]
	_, err = unix.MmapPtr(int(f.Fd()), 0, unsafe.Pointer(&data[0]), uintptr(len(data)), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_FIXED)
	fail(err)
	var sum byte
	for at := offset; at < offset+size; at += int64(os.Getpagesize()) {
		sum += data[at]
	}
	fmt.Println("sum", sum)
}

// fill makes files of a page until it cannot.
func fill(dir string) {
	fail(os.Mkdir(dir, 0o755))
	for n := 0; ; n++ {
		fail(os.WriteFile(fmt.Sprintf("%s/%d", dir, n), make([]byte, os.Getpagesize()), 0o644))
	}
}

func walk(dir string) {
	fail(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		_, err = os.ReadFile(path)
		return err
	}))
}

// stubborn rings when it is asked to end, and goes on.
func stubborn() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	fmt.Println("stubborn")
	for range asked {
		fail(os.WriteFile("/door/bell", []byte("\n"), 0o600))
	}
}

// polite ends by SIGTERM, reads a file that only then is read, and leaves another
// where /marks is mounted.
func polite() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	fmt.Println("polite")
	<-asked
	_, _ = os.ReadFile("/data/late")
	_ = os.WriteFile("/marks/bye", nil, 0o644)
	os.Exit(3)
}

func number(s string) int64 {
	n, err := strconv.ParseInt(s, 0, 64)
	fail(err)
	return n
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
