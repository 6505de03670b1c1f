package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script stands for the binary of a fuzz target.
func script(t *testing.T, text string) target {
	file := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return target{name: "FuzzIt", dir: filepath.Dir(file), binary: file}
}

func TestTarget(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		limits limits
		want   string // of the error
	}{
		"passes": {"echo fuzz: elapsed: 1s, execs: 5", limits{time.Minute, time.Minute}, ""},
		"fails":  {"printf input >input; echo Failing input written to input; exit 1", limits{time.Minute, time.Minute}, "written to input\ninput"},
		"time is over": {"printf '%s\\n' '--- FAIL: FuzzIt (62.73s)' '    context deadline exceeded' FAIL; exit 1",
			limits{time.Minute, time.Minute}, ""},
		"fails with that error": {"printf '%s\\n' '--- FAIL: FuzzIt (1.00s)' '    --- FAIL: FuzzIt (0.00s)' '        it_test.go:1: context deadline exceeded' FAIL; exit 1",
			limits{time.Minute, time.Minute}, "exit status 1"},
		"fails as time is over": {"printf input >input; printf '%s\\n' 'Failing input written to input' '--- FAIL: FuzzIt (62.73s)' '    context deadline exceeded' FAIL; exit 1",
			limits{time.Minute, time.Minute}, "exit status 1"},
		"hangs": {"while echo 'fuzz: elapsed: 1s, execs: 5 (1/sec)'; do sleep 0.1; done",
			limits{time.Minute, 300 * time.Millisecond}, "one input has run for 300ms"},
		"says nothing":   {"sleep 100", limits{time.Minute, 300 * time.Millisecond}, "one input has run for 300ms"},
		"does not end":   {"while echo $((n += 1)); do sleep 0.1; done", limits{0, 300 * time.Millisecond}, "did not end within 600ms"},
		"holds its pipe": {"sleep 100 & exit 1", limits{time.Minute, 300 * time.Millisecond}, "one input"},
	} {
		t.Run(name, func(t *testing.T) {
			err := script(t, c.script).run(t.Context(), c.limits)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
