// Command hardfiles makes, inside a build, the files that archives get wrong,
// and prints what a root filesystem holds, so that two of them can be compared
// line by line. It runs in containers that have nothing else in them.
//
//	hardfiles lower DIR          makes files
//	hardfiles upper DIR          changes, links and deletes them, for a layer above
//	hardfiles random FILE BYTES SEED
//	hardfiles many DIR COUNT     makes small files, 1000 to a directory
//	hardfiles manifest [-root R] DIR...
package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

func main() {
	log.SetFlags(0)
	args := append(os.Args[1:], "", "", "", "")
	var err error
	switch args[0] {
	case "lower":
		err = lower(args[1])
	case "upper":
		err = upper(args[1])
	case "random":
		err = random(args[1], args[2], args[3])
	case "many":
		err = many(args[1], args[2])
	case "manifest":
		err = manifest(os.Args[2:])
	default:
		err = fmt.Errorf("no such command: %q", args[0])
	}
	if err != nil {
		log.Fatal(err)
	}
}

// random writes that many bytes which gzip shrinks to about three quarters, the
// same ones for the same seed.
func random(file, size, seed string) error {
	n, err := strconv.Atoi(size)
	if err != nil {
		return err
	}
	s, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, noise(n, s), 0o644); err != nil {
		return err
	}
	t := time.Unix(settled, 0)
	return errors.Join(os.Chtimes(file, t, t), os.Chtimes(filepath.Dir(file), t, t))
}

// many writes that many files below dir, each with its own number in it.
func many(dir, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	start := started()
	m := &maker{dir: dir}
	for i := range n {
		if i%1000 == 0 {
			m.mkdir(fmt.Sprint(i / 1000))
		}
		m.file(fmt.Sprintf("%d/%d", i/1000, i), fmt.Appendln(nil, i))
	}
	m.settle(start)
	return m.err
}
