// Command results makes a page of raw results, which are in the format of Go
// benchmarks: results DIR makes DIR.md of all DIR/*.txt, with plots in DIR, and
// results DIR NAME prints what is in it of DIR/NAME.txt too.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) < 2 || len(os.Args) > 3 {
		log.Fatal("usage: results DIR [NAME]")
	}
	dir := os.Args[1]
	if err := writePage(dir); err != nil {
		log.Fatal(err)
	}
	if len(os.Args) == 3 {
		r, err := readFile(os.DirFS(dir), os.Args[2]+".txt")
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(r.markdown(dir))
	}
	log.Printf("the page with plots: %s.md", dir)
}

// writePage writes the page and its plots in place of those that there were.
func writePage(dir string) error {
	files, err := page(os.DirFS(dir), filepath.Base(dir))
	if err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil {
		return err
	}
	for _, f := range append(old, dir+".md") {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(filepath.Dir(dir), name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
