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
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("no command"))
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "pread":
		pread(args[0], number(args[1]), number(args[2]))
	case "mmap":
		mmap(args[0], number(args[1]), number(args[2]))
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

// mmap touches a byte of each page from offset on.
func mmap(name string, offset, size int64) {
	f, err := os.Open(name)
	fail(err)
	info, err := f.Stat()
	fail(err)
	data, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_PRIVATE)
	fail(err)
	var sum byte
	for at := offset; at < offset+size; at += int64(os.Getpagesize()) {
		sum += data[at]
	}
	fmt.Println("sum", sum)
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

// stubborn has a handler for SIGTERM that does nothing.
func stubborn() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM)
	fmt.Println("stubborn")
	time.Sleep(time.Hour)
}

// polite ends by SIGTERM, and reads a file that only then is read.
func polite() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	fmt.Println("polite")
	<-asked
	_, _ = os.ReadFile("/data/late")
	fmt.Println("bye")
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
