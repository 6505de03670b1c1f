// Command bench measures our daemon and others' work side by side, in one run on
// one machine. It prints what it found, and adds it to a page with plots.
// hack/bench builds what it needs and starts it.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/buildkitd-esgz/buildkitd-esgz/internal/harness"
)

// config says where everything is.
type config struct {
	tools harness.Tools
	base  string // the directory with the tar that hack/base made
	repo  string
	work  string // a directory of this run
	runs  int
}

// ourName begins the names of our contenders.
const ourName = "buildkitd-esgz"

// benchmarks are what can be measured.
var benchmarks = []benchmark{
	{"export", "Writing layers", export},
	{"whole", "From a built image to one that starts lazily", whole},
	{"levels", "Compression levels", levels},
	{"chunks", "Small files that share members", chunks},
	{"size", "Large layers", size},
	{"profile", "Profiled images under stock containerd and stargz-snapshotter", profile},
	{"record", "Steps while their reads are recorded", recordSteps},
	{"lazy", "Building upon images that are not here", lazy},
	{"idle", "Daemons that have nothing to do", idle},
	{"hostile", "Layers that are made to cost much", hostile},
}

type benchmark struct {
	name, title string
	measure     func(context.Context, *config) ([]section, error)
}

func main() {
	log.SetFlags(0)
	cache := flag.String("cache", "/var/cache/buildkitd-esgz", "where hack/tools and hack/base put what they made")
	repo := flag.String("repo", ".", "the repository")
	runs := flag.Int("runs", 3, "how often everything is measured")
	out := flag.String("o", "", "file for the raw results, for benchstat; beside the page by default")
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
	c := &config{tools: harness.Tools(filepath.Join(*cache, "bin")), base: filepath.Join(*cache, "base"), repo: *repo, work: work, runs: *runs}
	page, err := benchmarks[at].run(ctx, c, filepath.Join(*cache, "bench"), *out)
	if err := errors.Join(err, harness.RemoveAll(work)); err != nil {
		log.Fatal(err)
	}
	log.Printf("the page with plots: %s", page)
}

func names() string {
	var all []string
	for _, b := range benchmarks {
		all = append(all, b.name)
	}
	return strings.Join(all, "|")
}

// run measures, and returns the page that shows it.
func (b *benchmark) run(ctx context.Context, c *config, dir, out string) (page string, err error) {
	r := &report{
		Name: b.name, Title: b.title, Command: fmt.Sprintf("hack/bench -runs %d %s", c.runs, b.name),
		Revision: revision(), Machine: machine(), Date: time.Now(),
	}
	if err := writeBakeFile(c); err != nil {
		return "", err
	}
	if r.Sections, err = b.measure(ctx, c); err != nil {
		return "", err
	}
	fmt.Print(r.markdown())
	if err := r.keepRaw(cmp.Or(out, filepath.Join(dir, b.name+".txt"))); err != nil {
		return "", err
	}
	return r.keep(dir)
}

// machine says what the numbers were measured on.
func machine() string {
	var name syscall.Utsname
	_ = syscall.Uname(&name)
	return fmt.Sprintf("%d cores, Linux %s, %s", runtime.NumCPU(), zeroEnded(name.Release[:]), runtime.Version())
}

func zeroEnded(chars []int8) string {
	var s []byte
	for _, c := range chars {
		if c == 0 {
			break
		}
		s = append(s, byte(c))
	}
	return string(s)
}
