// Command bench measures our daemon and others' work side by side, in one run on
// one machine, and writes raw results in the format of Go benchmarks, of which
// hack/cmd/results makes a page. hack/bench builds what it needs and starts it.
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// A bench is one run of this command: where everything is, and what was measured.
type bench struct {
	tools harness.Tools
	base  string // the directory with the tar that hack/base made
	repo  string
	work  string // a directory of this run
	runs  int
	raw   strings.Builder // the results
}

// ourName begins the names of our sides.
const ourName = "buildkitd-esgz"

// benchmarks are what can be measured.
var benchmarks = []benchmark{
	{"export", "Writing layers", (*bench).export},
	{"kinds", "Writing layers of one kind", (*bench).kinds},
	{"whole", "From a built image to one that starts lazily", (*bench).whole},
	{"levels", "Compression levels", (*bench).levels},
	{"chunks", "Small files that share members", (*bench).chunks},
	{"size", "Large layers", (*bench).size},
	{"profile", "Profiled images under stock containerd and stargz-snapshotter", (*bench).profile},
	{"record", "Steps while their reads are recorded", (*bench).record},
	{"lazy", "Building upon images that are not here", (*bench).lazy},
	{"idle", "Daemons that have nothing to do", (*bench).idle},
	{"hostile", "Layers that are made to cost much", (*bench).hostile},
}

type benchmark struct {
	name, title string
	measure     func(*bench, context.Context) error
}

func main() {
	log.SetFlags(0)
	cache := flag.String("cache", "/var/cache/buildkitd-esgz", "where hack/tools and hack/base put what they made")
	repo := flag.String("repo", ".", "the repository")
	runs := flag.Int("runs", 3, "how often everything is measured")
	dir := flag.String("dir", ".", "where the raw results are written to, as NAME.txt")
	flag.Parse()
	at := slices.IndexFunc(benchmarks, func(b benchmark) bool { return b.name == flag.Arg(0) })
	if flag.NArg() != 1 || at < 0 || *runs < 1 {
		log.Fatal("usage: bench [flags] " + names())
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	work, err := os.MkdirTemp("", "bench")
	if err != nil {
		log.Fatal(err)
	}
	b := &bench{tools: harness.Tools(filepath.Join(*cache, "bin")), base: filepath.Join(*cache, "base"), repo: *repo, work: work, runs: *runs}
	if err := errors.Join(b.run(ctx, benchmarks[at], *dir), harness.RemoveAll(work)); err != nil {
		log.Fatal(err)
	}
}

func names() string {
	var all []string
	for _, b := range benchmarks {
		all = append(all, b.name)
	}
	return strings.Join(all, "|")
}

// run measures, and writes the results to a directory.
func (b *bench) run(ctx context.Context, what benchmark, dir string) error {
	about, err := b.about(what)
	if err != nil {
		return err
	}
	if err := b.writeBakeFile(); err != nil {
		return err
	}
	if err := what.measure(b, ctx); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, what.name+".txt"), []byte(about+b.raw.String()), 0o644)
}

// turns has every side measured once in each run. Each run begins with another side, so
// that none is first more often by more than one run.
func turns[S any](runs int, sides []S, measure func(S) error) error {
	order := slices.Clone(sides)
	for run := range runs {
		log.Printf("run %d of %d", run+1, runs)
		for _, side := range order {
			if err := measure(side); err != nil {
				return err
			}
		}
		order = append(order[1:], order[0])
	}
	return nil
}
