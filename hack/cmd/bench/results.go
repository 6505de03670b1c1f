package main

import (
	"fmt"
	"log"
	"os"
	"runtime"
	"runtime/debug"
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
func about(title, command string) string {
	var uname unix.Utsname
	_ = unix.Uname(&uname)
	info, _ := os.ReadFile("/proc/cpuinfo")
	_, rest, _ := strings.Cut(string(info), "model name\t: ")
	cpu, _, _ := strings.Cut(rest, "\n")
	return fmt.Sprintf("title: %s\ngoos: %s\ngoarch: %s\ncpu: %s\nmachine: %d cores, Linux %s, %s\ncommit: %s\ndate: %s\ncommand: %s\n",
		title, runtime.GOOS, runtime.GOARCH, cpu, runtime.NumCPU(), unix.ByteSliceToString(uname.Release[:]), runtime.Version(),
		revision(), time.Now().Format(time.DateOnly), command)
}

// revision is the commit that this program was built from.
func revision() string {
	commit, changes := "unknown", ""
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			changes = " with changes"
		}
	}
	return commit + changes
}
