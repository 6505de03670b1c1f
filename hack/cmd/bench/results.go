package main

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A reading is a value in a unit, as ns/op.
type reading struct {
	value float64
	unit  string
}

func wall(d time.Duration) reading { return reading{float64(d), "ns/op"} }

func bytesIn(what string, n int64) reading { return reading{float64(n), "B-" + what} }

func count(what string, n int) reading { return reading{float64(n), what} }

func (f reading) String() string {
	if what, ok := strings.CutSuffix(f.unit, "ns/op"); ok {
		return what + time.Duration(f.value).Round(time.Millisecond).String()
	}
	return fmt.Sprintf("%.6g %s", f.value, f.unit)
}

// startSection has the results to come stand in a table of their own.
func (b *bench) startSection(title string) { fmt.Fprintf(&b.raw, "\nsection: %s\n", title) }

// add writes what one side took for a work once, in the format of Go benchmarks,
// which benchstat reads: benchstat -col /side FILE.
func (b *bench) add(work, side string, readings ...reading) {
	log.Printf("%s, %s: %v", work, side, readings)
	// Behind Benchmark stands no small letter.
	name := word(work)
	fmt.Fprintf(&b.raw, "Benchmark%s%s/side=%s 1", strings.ToUpper(name[:1]), name[1:], word(side))
	for _, f := range readings {
		fmt.Fprintf(&b.raw, " %s %s", strconv.FormatFloat(f.value, 'f', -1, 64), f.unit)
	}
	b.raw.WriteString("\n")
}

// word is a text as a part of a benchmark's name, which has no spaces.
func word(text string) string { return strings.NewReplacer(" ", "_", "/", "_").Replace(text) }

// about are the first lines of raw results.
func (b *bench) about(what benchmark) (string, error) {
	commit, err := b.commit()
	if err != nil {
		return "", err
	}
	var uname unix.Utsname
	_ = unix.Uname(&uname)
	info, _ := os.ReadFile("/proc/cpuinfo")
	_, rest, _ := strings.Cut(string(info), "model name\t: ")
	cpu, _, _ := strings.Cut(rest, "\n")
	return fmt.Sprintf("title: %s\ngoos: %s\ngoarch: %s\ncpu: %s\nmachine: %d cores, Linux %s, %s\ncommit: %s\ndate: %s\ncommand: hack/bench -runs %d %s\n",
		what.title, runtime.GOOS, runtime.GOARCH, cpu, runtime.NumCPU(), unix.ByteSliceToString(uname.Release[:]), runtime.Version(),
		commit, time.Now().Format(time.DateOnly), b.runs, what.name), nil
}

// commit is the one that the programs were built from, in hack/bench, and whether
// something but the documentation was changed since.
func (b *bench) commit() (string, error) {
	out, err := exec.Command("git", "-C", b.repo, "rev-parse", "--short=12", "HEAD").Output()
	if err != nil {
		return "", fmt.Errorf("git rev-parse: %w", err)
	}
	commit := strings.TrimSpace(string(out))
	changed, err := exec.Command("git", "-C", b.repo, "status", "--porcelain", "--", ".", ":!docs").Output()
	if err != nil {
		return "", fmt.Errorf("git status: %w", err)
	}
	if len(changed) > 0 {
		commit += " with changes"
	}
	return commit, nil
}
