// Command fuzz runs every fuzz target of the module for a while, as many at once
// as there are processors. A target that finds something, or that hangs in one
// input, fails; the input is kept in the package's testdata/fuzz.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	limits := limits{}
	flag.DurationVar(&limits.total, "time", time.Minute, "how long each target runs")
	flag.DurationVar(&limits.stall, "stall", time.Minute, "fail a target that has run no input for this long")
	run := flag.String("run", ".", "run only the targets that match this regular expression")
	flag.Parse()
	match, err := regexp.Compile(*run)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := fuzz(ctx, match, limits); err != nil {
		log.Fatal(err)
	}
}

// fuzz finds, builds and runs the targets, and returns the failures of all.
func fuzz(ctx context.Context, match *regexp.Regexp, limits limits) error {
	dir, err := os.MkdirTemp("", "fuzz")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	targets, err := build(ctx, dir, match)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return errors.New("no fuzz target was found")
	}

	errs := make([]error, len(targets))
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	var all sync.WaitGroup
	for i, t := range targets {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs[i] = t.run(ctx, limits)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// build makes one test binary, instrumented for fuzzing, for each package that
// has targets, and asks it for them.
func build(ctx context.Context, dir string, match *regexp.Regexp) ([]target, error) {
	dirs, err := packages(ctx)
	if err != nil {
		return nil, err
	}
	goCache, err := exec.CommandContext(ctx, "go", "env", "GOCACHE").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOCACHE: %w", err)
	}
	corpus := filepath.Join(strings.TrimSpace(string(goCache)), "fuzz", "buildkitd-esgz")
	var targets []target
	for i, pkg := range dirs {
		start := time.Now()
		binary := filepath.Join(dir, fmt.Sprint(i))
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-fuzz=.", "-o", binary, ".")
		cmd.Dir = pkg
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build the tests of %s: %w\n%s", pkg, err, out)
		}
		list, err := exec.CommandContext(ctx, binary, "-test.list=^Fuzz").Output()
		if err != nil {
			return nil, fmt.Errorf("list the targets of %s: %w", pkg, err)
		}
		log.Printf("built %s: %.0fs", filepath.Base(pkg), time.Since(start).Seconds())
		for name := range strings.FieldsSeq(string(list)) {
			if match.MatchString(name) {
				targets = append(targets, target{name: name, dir: pkg, binary: binary, cache: filepath.Join(corpus, filepath.Base(pkg))})
			}
		}
	}
	return targets, nil
}

var declaration = regexp.MustCompile(`(?m)^func Fuzz\w*\(`)

// packages returns the directories that have a fuzz target in their tests.
func packages(ctx context.Context) ([]string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "./...")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var found []string
	for dir := range strings.FieldsSeq(string(out)) {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			if declaration.Match(source) {
				found = append(found, dir)
				break
			}
		}
	}
	return found, nil
}
