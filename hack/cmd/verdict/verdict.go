package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// allowed are parts of the reasons for which a test may be skipped.
var allowed = []string{
	// What another machine has, and no package brings.
	"this kernel",
	"this machine",
	"the kernel has no passthrough",
	"ranges cannot be recorded here",
	"no huge pages of files here",
	"no user namespaces",
	"running in a user namespace",
	"running rootless",
	// A child process of another test.
	"is run by Test",
	// With -short. hack/test runs the packages that have such tests without.
	"takes some seconds",
	"reads 4 GiB of zeros",
}

// An event is a line of go test -json.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// A verdict is what came of the tests.
type verdict struct {
	out     io.Writer
	verbose bool
	said    map[string][]string // the output of each test, or of a package, until it ends
	skipped []string            // with the reasons
	refused int                 // of those
}

func newVerdict(out io.Writer) *verdict { return &verdict{out: out, said: map[string][]string{}} }

// read goes through the events to their end. Lines that are none are shown.
func (v *verdict) read(r io.Reader) error {
	for in := bufio.NewReader(r); ; {
		line, err := in.ReadString('\n')
		var e event
		if json.Unmarshal([]byte(line), &e) == nil {
			v.add(e)
		} else {
			io.WriteString(v.out, line)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (v *verdict) add(e event) {
	name := e.Package + " " + e.Test
	switch e.Action {
	case "build-output":
		io.WriteString(v.out, e.Output)
	case "output":
		v.said[name] = append(v.said[name], e.Output)
		if v.verbose {
			io.WriteString(v.out, e.Output)
		}
	case "skip":
		v.skip(e, strings.Join(v.said[name], ""))
		delete(v.said, name)
	case "pass":
		v.show(name, e.Test == "")
	case "fail":
		if e.Test == "" {
			v.showUnended(e.Package)
		}
		v.show(name, true)
	}
}

// showUnended shows what the tests of a package have said that did not end: go
// test prints the stacks of a timeout or a panic as the output of one of them.
func (v *verdict) showUnended(pkg string) {
	for _, name := range slices.Sorted(maps.Keys(v.said)) {
		if strings.HasPrefix(name, pkg+" ") && name != pkg+" " {
			v.show(name, true)
		}
	}
}

// show shows what a test or a package has said, unless that was done.
func (v *verdict) show(name string, wanted bool) {
	if wanted && !v.verbose {
		for _, line := range v.said[name] {
			io.WriteString(v.out, line)
		}
	}
	delete(v.said, name)
}

func (v *verdict) skip(e event, said string) {
	if e.Test == "" {
		return // A package without tests.
	}
	skipped := fmt.Sprintf("%s %s: %s", e.Package, e.Test, reason(said))
	for _, part := range allowed {
		if strings.Contains(last(said), part) {
			v.skipped = append(v.skipped, skipped)
			return
		}
	}
	v.refused++
	v.skipped = append(v.skipped, skipped+" (IS NO REASON TO SKIP IT HERE)")
}

// last is the last line that a test has said itself, which is why it is skipped.
func last(said string) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	lines = slices.DeleteFunc(lines, func(line string) bool { return isFrame(strings.TrimSpace(line)) })
	return lines[len(lines)-1]
}

// isFrame says whether a line is of go test itself.
func isFrame(line string) bool {
	return line == "" || strings.HasPrefix(line, "===") || strings.HasPrefix(line, "---")
}

// reason leaves out the lines that every test has.
func reason(said string) string {
	var lines []string
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if !isFrame(line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, " ")
}

// skips shows them, and is an error when there is one without a good reason.
func (v *verdict) skips() error {
	for _, skipped := range v.skipped {
		fmt.Fprintln(v.out, "skipped:", skipped)
	}
	if v.refused > 0 {
		return fmt.Errorf("%d tests were skipped that have to run here", v.refused)
	}
	return nil
}
