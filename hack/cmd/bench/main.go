// Command bench measures our daemon and the stock one side by side, in one run
// on one machine, and prints Markdown tables. hack/bench builds what it needs
// and starts it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
)

// config says where everything is.
type config struct {
	bin  string // what hack/tools built
	base string // the directory with the tar that hack/base made
	repo string
	work string // a directory of this run
	runs int
}

func (c *config) tool(name string) string { return filepath.Join(c.bin, name) }

// benchmarks are what can be measured.
var benchmarks = map[string]func(context.Context, *config) error{
	"export":  export,
	"lazy":    lazy,
	"profile": profile,
	"record":  recordSteps,
}

func main() {
	log.SetFlags(0)
	cache := flag.String("cache", "/var/cache/buildkitd-esgz", "where hack/tools and hack/base put what they made")
	repo := flag.String("repo", ".", "the repository")
	runs := flag.Int("runs", 3, "how often everything is measured")
	flag.Parse()
	measure := benchmarks[flag.Arg(0)]
	if flag.NArg() != 1 || measure == nil || *runs < 1 {
		log.Fatal("usage: bench [flags] export|lazy|profile|record")
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	work, err := os.MkdirTemp("", "bench")
	if err != nil {
		log.Fatal(err)
	}
	c := &config{bin: filepath.Join(*cache, "bin"), base: filepath.Join(*cache, "base"), repo: *repo, work: work, runs: *runs}
	if err := errors.Join(measure(ctx, c), os.RemoveAll(work)); err != nil {
		log.Fatal(err)
	}
}

// machine says what the numbers were measured on.
func machine() string {
	var name syscall.Utsname
	_ = syscall.Uname(&name)
	return fmt.Sprintf("%d cores, Linux %s, %s", runtime.NumCPU(), text(name.Release[:]), runtime.Version())
}

func text(chars []int8) string {
	var s []byte
	for _, c := range chars {
		if c == 0 {
			break
		}
		s = append(s, byte(c))
	}
	return string(s)
}
