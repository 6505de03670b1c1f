package record

import (
	"testing"
)

func TestReads(t *testing.T) {
	s := newSandbox(t)
	s.file("/data/a", "a")
	s.file("/data/b", "b")
	s.file("/data/unread", "c")
	p, sum := s.record(Options{}, "sh", "-c", "cat /data/a; (cat < /data/b)")
	wantPaths(t, p, "a", "b")
	t.Logf("%+v\n%v\n%s", sum, p, s.stderr.String())
}
