package main

import (
	"strings"
	"testing"
)

func TestVerdict(t *testing.T) {
	for name, c := range map[string]struct {
		events  string
		want    string // part of what is shown
		refused bool
	}{
		"passed": {`{"Action":"output","Package":"p","Test":"TestA","Output":"noise\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"ok p 1s\n"}
{"Action":"pass","Package":"p"}`, "ok p 1s\n", false},
		"failed": {`{"Action":"output","Package":"p","Test":"TestA","Output":"a_test.go:1: no\n"}
{"Action":"fail","Package":"p","Test":"TestA"}`, "a_test.go:1: no\n", false},
		"does not compile": {`{"ImportPath":"p","Action":"build-output","Output":"a.go:1: undefined\n"}`, "a.go:1: undefined\n", false},
		"skipped with reason": {`{"Action":"output","Package":"p","Test":"TestA","Output":"a_test.go:1: this kernel is old\n"}
{"Action":"skip","Package":"p","Test":"TestA"}`, "skipped: p TestA: a_test.go:1: this kernel is old\n", false},
		"skipped": {`{"Action":"output","Package":"p","Test":"TestA/b","Output":"a_test.go:1: needs root\n"}
{"Action":"skip","Package":"p","Test":"TestA/b"}`, "skipped: p TestA/b: a_test.go:1: needs root (IS", true},
		"skipped without reason after saying one": {`{"Action":"output","Package":"p","Test":"TestA","Output":"a_test.go:1: this kernel\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"a_test.go:2: needs root\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}`, "(IS NO REASON", true},
		"panicked": {`{"Action":"output","Package":"p","Test":"TestA","Output":"panic: test timed out after 2s\n"}
{"Action":"output","Package":"p","Output":"FAIL p 2s\n"}
{"Action":"fail","Package":"p"}`, "panic: test timed out after 2s\nFAIL p 2s\n", false},
		"no tests":         {`{"Action":"skip","Package":"p"}`, "", false},
		"not from go test": {"panic: no", "panic: no", false},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			v := newVerdict(&out)
			if err := v.read(strings.NewReader(c.events)); err != nil {
				t.Fatal(err)
			}
			if err := v.skips(); (err != nil) != c.refused {
				t.Errorf("the verdict is %v", err)
			}
			if got := out.String(); !strings.Contains(got, c.want) || strings.Contains(got, "noise") {
				t.Errorf("shown is %q, want %q", got, c.want)
			}
		})
	}
}
