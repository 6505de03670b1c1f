package record

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
)

func TestTap(t *testing.T) {
	for _, test := range []struct {
		pattern string
		writes  []string
		at      int // the write that matches, or none if negative
	}{
		{"ready", []string{"rea", "dy"}, 1},
		{"^ready$", []string{"not ready\n", "ready\r\n"}, 1},
		{"^ready", []string{"a\nready"}, 0},
		{"a.*b", []string{"a\n", "b\n"}, -1},
		{"end$", []string{strings.Repeat("x", 3*maxLine), "\nthe end"}, 1},
		{"end", []string{strings.Repeat("x", 3*maxLine), "end"}, -1},
		{"b", []string{"a\n", "", "b"}, 2},
	} {
		matched := -1
		passed := &tail{}
		i := 0
		tap := &tap{tail: passed, pattern: regexp.MustCompile(test.pattern), matched: func() {
			if matched < 0 {
				matched = i
			}
		}}
		for ; i < len(test.writes); i++ {
			if n, err := tap.Write([]byte(test.writes[i])); n != len(test.writes[i]) || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		}
		if matched != test.at || !strings.HasSuffix(strings.Join(test.writes, ""), string(passed.text)) || len(passed.text) == 0 {
			t.Errorf("%s in %.40q: matched at %d, want %d; passed %.40q", test.pattern, test.writes, matched, test.at, passed.text)
		}
	}
}

func TestTail(t *testing.T) {
	full := strings.Repeat("x", maxTail)
	for _, test := range []struct {
		writes []string
		want   string
	}{
		{nil, ""},
		{[]string{"\n"}, ""},
		{[]string{"a\n", "b\n"}, "its output:\na\nb"},
		{[]string{full}, "its output:\n" + full},
		{[]string{"a", full}, "the end of its output:\n" + full},
		{[]string{"a" + full}, "the end of its output:\n" + full},
		{[]string{full, full, "b"}, "the end of its output:\n" + full[1:] + "b"},
	} {
		text := &tail{}
		for _, w := range test.writes {
			text.add([]byte(w))
			if len(text.text) > 2*maxTail {
				t.Errorf("%d bytes are kept", len(text.text))
			}
		}
		if got := text.quote(); got != test.want {
			t.Errorf("%.40q: %.40q, want %.40q", test.writes, got, test.want)
		}
	}
}

func TestJudge(t *testing.T) {
	coded := func(code uint32) error { return &gatewayapi.ExitError{ExitCode: code} }
	other := errors.New("unable to find user nobody")
	for _, test := range []struct {
		end    End
		err    error
		line   string
		want   End
		code   int
		reason string
		fails  bool
	}{
		{EndExit, nil, "", EndExit, 0, "", false},
		{EndExit, coded(3), "", EndExit, 3, "", false},
		{EndExit, coded(1), "exec /x: exec format error", EndStart, 1, "exec /x: exec format error", false},
		{EndExit, coded(1), "sh: exec: /x: not found", EndExit, 1, "", false},
		{EndExit, other, "", EndStart, 0, other.Error(), false},
		{EndIdle, coded(137), "", EndIdle, 0, "", false},
		{EndIdle, other, "", EndIdle, 0, "", true},
	} {
		s := Summary{End: test.end}
		err := s.judge(test.err, test.line)
		if s.End != test.want || s.ExitCode != test.code || s.Reason != test.reason || (err != nil) != test.fails {
			t.Errorf("%+v: %+v, %v", test, s, err)
		}
	}
}

func TestRingSize(t *testing.T) {
	for cpus, want := range map[int]int{1: 2 << 20, 8: 2 << 20, 9: 1 << 20, 64: 256 << 10, 512: 256 << 10} {
		if got := ringSize(cpus); got != want {
			t.Errorf("%d CPUs: %d, want %d", cpus, got, want)
		}
	}
}

func TestParseFormat(t *testing.T) {
	const format = `name: mm_filemap_map_pages
ID: 598
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:unsigned long i_ino;	offset:8;	size:8;	signed:0;
	field:dev_t s_dev;	offset:16;	size:4;	signed:0;
	field:unsigned long index;	offset:24;	size:8;	signed:0;
	field:unsigned long last_index;	offset:32;	size:8;	signed:0;

print fmt: "dev=%d:%d"
`
	p := tracepoint{fields: [4]string{"s_dev", "i_ino", "index", "last_index"}, behind: 5}
	check(t, p.parseFormat(format))
	raw := make([]byte, 40)
	raw[8], raw[16], raw[24], raw[32] = 1, 2, 30, 34
	if of, first, last := p.pages(raw); of != (inode{2, 1}) || first != 25 || last != 34 {
		t.Errorf("%v %d-%d", of, first, last)
	}
	if of, first, last := p.pages(raw[:20]); of != (inode{2, 1}) || first != 0 || last != 0 {
		t.Errorf("%v %d-%d", of, first, last)
	}
	if err := p.parseFormat("field:int x; offset:0; size:4;"); err == nil {
		t.Error("no fields, no error")
	}
}
