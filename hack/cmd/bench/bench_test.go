package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTurns(t *testing.T) {
	sides, order := []string{"a", "b", "c"}, ""
	require.NoError(t, turns(3, sides, func(side string) error {
		order += side
		return nil
	}))
	require.Equal(t, "abcbcacab", order)
	require.Equal(t, []string{"a", "b", "c"}, sides)

	broken := errors.New("broken")
	require.Equal(t, broken, turns(3, sides, func(string) error { return broken }))
}

func TestAbout(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip(err)
	}
	repo := t.TempDir()
	git := func(args ...string) string {
		cmd := exec.Command("git", append([]string{"-C", repo, "-c", "user.name=x", "-c", "user.email=x@example.org"}, args...)...)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return strings.TrimSpace(string(out))
	}
	b := &bench{repo: repo, runs: 7}
	_, err := b.about(benchmark{})
	require.Error(t, err, "no repository")

	git("init", "--quiet")
	require.NoError(t, os.Mkdir(filepath.Join(repo, "docs"), 0o755))
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(repo, name), []byte(text), 0o644))
	}
	write("code", "1")
	write("docs/page", "1")
	git("add", ".")
	git("commit", "--quiet", "--message", "x")
	commit := git("rev-parse", "--short=12", "HEAD")

	write("docs/page", "2")
	about, err := b.about(benchmark{name: "lazy", title: "A title"})
	require.NoError(t, err)
	require.Contains(t, about, "title: A title\n")
	require.Contains(t, about, "\ncommand: hack/bench -runs 7 lazy\n")
	require.Contains(t, about, "\ncommit: "+commit+"\n")
	for line := range strings.Lines(about) {
		require.Regexp(t, `^[a-z][^\sA-Z:]*: .*\n$`, line)
	}
	for _, changed := range []string{"code", "new"} {
		write(changed, "2")
		about, err = b.about(benchmark{})
		require.NoError(t, err)
		require.Contains(t, about, "\ncommit: "+commit+" with changes\n", changed)
		git("stash", "--include-untracked")
	}
}

// What is written is the format of Go benchmarks: configuration lines, and lines of
// a name, a number of iterations, and pairs of a value and a unit.
func TestRaw(t *testing.T) {
	b := &bench{}
	b.startSection("Cold builds")
	b.add("tar of a/b", "stock", wall(3*time.Second/2), bytesIn("fetched", 456))
	b.add("tar of a/b", ourName+", lazy", wall(time.Second), reading{0.25, "ratio"})
	raw := b.raw.String()
	for line := range strings.Lines(raw) {
		line = strings.TrimSuffix(line, "\n")
		require.Regexp(t, `^$|^[a-z][^\sA-Z:]*: .*$|^Benchmark[^\sa-z]\S* [1-9]\d*( -?\d+(\.\d+)? \S+)+$`, line)
	}
	require.Equal(t, `
section: Cold builds
BenchmarkTar_of_a_b/side=stock 1 1500000000 ns/op 456 B-fetched
BenchmarkTar_of_a_b/side=buildkitd-esgz,_lazy 1 1000000000 ns/op 0.25 ratio
`, raw)
}

// The number of processors is no part of a name.
func TestFigures(t *testing.T) {
	found := figures.FindAllStringSubmatch("pkg: x\nBenchmarkX/files=60000-2   \t  3\t 15 ns/op\t 2.5 MB\nBenchmarkY 1 15 ns/op\nBenchmarkFailed\nPASS\n", -1)
	require.Len(t, found, 2)
	require.Equal(t, "BenchmarkX/files=60000", found[0][1])
	require.Equal(t, "   \t  3\t 15 ns/op\t 2.5 MB", found[0][2])
	require.Equal(t, "BenchmarkY", found[1][1])
}
