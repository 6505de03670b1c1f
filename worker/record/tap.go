package record

import (
	"bytes"
	"regexp"
	"sync"
)

// A tap looks for a line of a stream of output that matches, and adds the stream
// to a tail. It is safe for concurrent use.
type tap struct {
	tail    *tail
	pattern *regexp.Regexp // nil matches nothing
	matched func()

	mu    sync.Mutex
	line  []byte // the last one, without what is over maxLine
	ended bool   // by a newline
}

// maxLine bounds what is kept of a line, in bytes. Each write looks at all of
// it again.
const maxLine = 8 << 10

func (t *tap) Write(b []byte) (int, error) {
	t.look(b)
	t.tail.add(b)
	return len(b), nil
}

func (t *tap) Close() error { return nil }

func (t *tap) look(b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for line := range bytes.Lines(b) {
		if t.ended {
			t.line = t.line[:0]
		}
		t.ended = line[len(line)-1] == '\n'
		t.line = append(t.line, line[:min(len(line), maxLine-len(t.line))]...)
		if t.pattern != nil && t.pattern.Match(bytes.TrimRight(t.line, "\r\n")) {
			t.matched()
		}
	}
}

// last returns the last line.
func (t *tap) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.line))
}

// A tail keeps the end of what a process writes. It is safe for concurrent use.
type tail struct {
	mu   sync.Mutex
	text []byte
	cut  bool // text is not all
}

// maxTail bounds what is kept of a workload's output, in bytes: some hundred
// lines, enough to include the error.
const maxTail = 16 << 10

func (t *tail) add(b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b[max(0, len(b)-maxTail):]...)
	t.cut = t.cut || len(b) > maxTail
	if len(t.text) > 2*maxTail { // not at each write, which would move all of it
		t.shorten()
	}
}

// shorten leaves at most maxTail bytes.
func (t *tail) shorten() {
	if over := len(t.text) - maxTail; over > 0 {
		t.text, t.cut = append(t.text[:0], t.text[over:]...), true
	}
}

// quote returns the output under a title, or nothing if there was none.
func (t *tail) quote() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shorten()
	text := string(bytes.TrimRight(t.text, "\n"))
	switch {
	case text == "":
		return ""
	case t.cut:
		return "the end of its output:\n" + text
	default:
		return "its output:\n" + text
	}
}
